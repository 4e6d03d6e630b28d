"""Reads BabyAI's levels of MiniGrid through `GymText`: ids such as `minigrid/GoToRedBall-v0`.

Each turn says what the agent sees in its view of seven by seven fields; a response is one of seven
actions. The library's bot is the perfect player. Success pays 1.0, however long it takes.
"""

from typing import Any, final

import gymnasium
import numpy as np

from llmgym.adapters.libraries import library_of, printed_to_log
from llmgym.adapters.turn_game import seeds_of
from llmgym.data.splits import Split, check_split
from llmgym.envs.gym_text import GymText, named_action

ACTIONS = ("left", "right", "forward", "pick up", "drop", "toggle", "done")
AGENT = (3, 6)
"""Column and row of the agent in its view; it looks towards row 0."""
MAX_TURNS = 64
RULES = (
    "You walk through a world of rooms. Answer each turn with left or right (turn), forward, "
    "pick up, drop, toggle (open a door or a box in front of you) or done."
)
_NAMES = """
    GoToRedBallGrey-v0 GoToRedBall-v0 GoToRedBallNoDists-v0 GoToObj-v0 GoToObjS4-v0 GoToObjS6-v1
    GoToLocal-v0 GoToLocalS5N2-v0 GoToLocalS6N2-v0 GoToLocalS6N3-v0 GoToLocalS6N4-v0
    GoToLocalS7N4-v0 GoToLocalS7N5-v0 GoToLocalS8N2-v0 GoToLocalS8N3-v0 GoToLocalS8N4-v0
    GoToLocalS8N5-v0 GoToLocalS8N6-v0 GoToLocalS8N7-v0 GoToObjMazeS4R2-v0 GoToObjMazeS4-v0
    GoToSeqS5R2-v0 GoToRedBlueBall-v0 GoToDoor-v0 GoToObjDoor-v0 OpenRedDoor-v0 OpenDoor-v0
    OpenDoorDebug-v0 OpenDoorColor-v0 OpenDoorLoc-v0 OpenTwoDoors-v0 OpenRedBlueDoors-v0
    OpenRedBlueDoorsDebug-v0 OpenDoorsOrderN2-v0 OpenDoorsOrderN4-v0 PickupLoc-v0 PickupDist-v0
    PickupDistDebug-v0 PickupAbove-v0 PutNextLocal-v0 PutNextLocalS5N3-v0 PutNextLocalS6N4-v0
    PutNextS4N1-v0 PutNextS5N2-v0 PutNextS5N1-v0 PutNextS6N3-v0 PutNextS7N4-v0 UnlockLocal-v0
    UnlockLocalDist-v0 UnlockPickup-v0 ActionObjDoor-v0 FindObjS5-v0 KeyCorridorS3R1-v0
    OneRoomS8-v0 OneRoomS12-v0 OneRoomS16-v0 OneRoomS20-v0 MoveTwoAcrossS5N2-v0
"""
_LONG = """
    GoTo-v0 GoToOpen-v0 GoToObjMaze-v0 GoToObjMazeOpen-v0 GoToObjMazeS5-v0 GoToObjMazeS6-v0
    GoToObjMazeS7-v0 GoToImpUnlock-v0 GoToSeq-v0 Open-v0 Pickup-v0 UnblockPickup-v0 Unlock-v0
    UnlockPickupDist-v0 BlockedUnlockPickup-v0 FindObjS6-v0 FindObjS7-v0 KeyCorridor-v0
    KeyCorridorS3R2-v0 KeyCorridorS3R3-v0 KeyCorridorS4R3-v0 KeyCorridorS5R3-v0
    KeyCorridorS6R3-v0 MoveTwoAcrossS8N9-v0 Synth-v0 SynthS5R2-v0 SynthLoc-v0 SynthSeq-v0
    MiniBossLevel-v0 BossLevel-v0 BossLevelNoUnlock-v0
"""
NAMES = tuple(_NAMES.split())
"""Levels that are read."""
NO_BOT = "the library's bot does not always solve it, so nothing shows what a good response is"
BLOCKED = {
    **dict.fromkeys(_LONG.split(), "a perfect episode takes up to 100 turns and more"),
    "OpenDoorsOrderN2Debug-v0": NO_BOT,
    "OpenDoorsOrderN4Debug-v0": NO_BOT,
    "PutNextS5N2Carrying-v0": NO_BOT,
    "PutNextS6N3Carrying-v0": NO_BOT,
    "PutNextS7N4Carrying-v0": NO_BOT,
    "KeyInBox-v0": NO_BOT,
    "UnlockToUnlock-v0": NO_BOT,
}
"""Levels that are not read, with the reason, as found in version 3.2.0."""


@final
class WithBot(gymnasium.Wrapper):
    """Keeps the bot's plan up to date with what was done.

    Attributes:
        advice: the number of the next action of the bot; None where it has none.
    """

    advice: int | None = None
    _bot: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode with a new bot."""
        with printed_to_log():
            observation, info = self.env.reset(**kwargs)
        self._bot = library_of("minigrid", "utils.baby_ai_bot").BabyAIBot(self.env)
        self._plan(None)
        return observation, info

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; the bot takes it into account."""
        result = self.env.step(action)
        if not (result[2] or result[3]):
            self._plan(action)
        return result

    def _plan(self, action: int | None) -> None:
        try:
            self.advice = int(self._bot.replan(action))
        except (AssertionError, AttributeError, IndexError, TypeError):  # it lost its way
            self.advice = None


def describe(env: gymnasium.Env, observation: dict[str, Any]) -> str:
    """Return the mission, what is seen, what is ahead and what is carried."""
    constants = library_of("minigrid", "core.constants")
    names, colors = constants.IDX_TO_OBJECT, constants.IDX_TO_COLOR
    seen, ahead = [], "free"
    for column, row in np.ndindex(observation["image"].shape[:2]):
        kind, color, state = (int(part) for part in observation["image"][column, row])
        is_ahead = (column, row) == (AGENT[0], AGENT[1] - 1)
        name = names[kind]
        if is_ahead and name != "empty":
            ahead = "a wall" if name in ("wall", "unseen") else f"a {colors[color]} {name}"
        if name in ("key", "ball", "box", "door") and (column, row) != AGENT:
            door = f"{('open', 'closed', 'locked')[state]} " if name == "door" else ""
            seen.append(f"a {door}{colors[color]} {name} {place_of(column, row)}")
    carried: Any = env.unwrapped.carrying  # type: ignore[attr-defined]
    hands = "nothing" if carried is None else f"a {carried.color} {carried.type}"
    return (
        f"Mission: {observation['mission']}.\nYou see {', '.join(seen) or 'nothing'}.\n"
        f"In front of you: {ahead}. You carry {hands}."
    )


def place_of(column: int, row: int) -> str:
    """Return where a field of the view is, from the agent: "2 ahead and 1 to the left"."""
    ahead, side = AGENT[1] - row, column - AGENT[0]
    parts = [f"{ahead} ahead"] if ahead else []
    if side:
        parts.append(f"{abs(side)} to the {'right' if side > 0 else 'left'}")
    return " and ".join(parts)


def parse(env: gymnasium.Env, text: str) -> int | None:
    """Return the number of the action that a response is."""
    del env
    return named_action(ACTIONS, text)


def solve(env: gymnasium.Env) -> str | None:
    """Return what the bot does next."""
    assert isinstance(env, WithBot)
    return None if env.advice is None else ACTIONS[env.advice]


def success(reward: float, terminated: bool) -> float:
    """Return 1.0 where the library pays for success, whatever the steps took off it."""
    del terminated
    return float(reward > 0)


def make(name: str, *, split: Split = "train", size: int | None = None, **kwargs: Any) -> GymText:
    """Build the environment of a level.

    Args:
        name: of the level.
        split: "train", "test" for the first 1000 seeds, or "all".
        size: the number of worlds; None for no end.
        **kwargs: for `GymText`.

    Raises:
        MissingExtraError: the library is not installed.
    """
    check_split(split)
    library_of("minigrid")  # registers the levels
    kwargs.setdefault("max_turns", MAX_TURNS)
    kwargs.setdefault("reward_bounds", (0.0, 1.0) if kwargs.get("reward") is None else None)
    return GymText(
        f"BabyAI-{name}",
        seeds_of(f"minigrid/{name}", split, size, RULES),
        describe=describe,
        parse=parse,
        solve=solve,
        pays=success,
        wrap=WithBot,
        expects=f"Answer with {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}.",
        **kwargs,
    )
