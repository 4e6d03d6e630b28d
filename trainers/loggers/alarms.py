"""What a run's figures say is wrong, where something can be done about it.

    an iteration's figures    -> what is wrong now: `wrong`
    the first and the last 5  -> the reward rises while something else drifts: `drifts`

Both are pure; `Alarms` remembers for how long, and what was said. It is fed metrics by metrics, so
a file of them tells what the run was told.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

from llmgym.plural import counted
from trainers.config import Config

WINDOW = 5
"""Iterations whose mean is compared: the first of the run with the latest."""
LASTING: Mapping[str, int] = {"no end token": 3, "large step": 3, "critic worse than the mean": 10}
"""Iterations in a row after which something is said that may well pass by itself."""
WATCHED = (
    "objective/scores", "objective/scores_std", "objective/kl", "completions/mean_length",
    "completions/distinct_2", "completions/repeat_4gram",
)  # fmt: skip

RISE = 0.25  # of the scores' deviation at the start: over 4 standard errors of 5 x 64 episodes
LONGER, SHORTER = 1.5, 0.5  # of the length at the start
LESS_VARIED = 0.9  # of the different pairs at the start
REPEATED = 0.1  # more repeated runs of four tokens than at the start
FAR = 20.0  # nats per episode from the reference
UNEXPLAINED = -0.1  # below: the critic's error is a tenth larger than the mean's


def find_problems(values: Mapping[str, float], config: Config) -> dict[str, str]:
    """Return what is wrong in an iteration: a short name, and a sentence with the remedy."""
    return _rewards(values, config) | _completions(values, config) | _learning(values, config)


def drifts(first: Mapping[str, float], last: Mapping[str, float], config: Config) -> dict[str, str]:
    """Return what drifts while the reward rises: signs that the reward is met, not the task.

    Args:
        first: mean figures of the first iterations.
        last: mean figures of the latest.
        config: names the remedies.
    """
    known = {key for key in WATCHED if key in first and key in last}
    if not {"objective/scores", "objective/scores_std"} <= known:
        return {}
    began, now = first["objective/scores"], last["objective/scores"]
    spread = first["objective/scores_std"]
    if spread <= 0.0 or now - began < RISE * spread:
        return {}
    drifting: dict[str, str] = {}
    for key in sorted(known):
        name, what = _drift(key, first[key], last[key])
        if name:
            drifting[name] = (
                f"the reward rose from {began:.3g} to {now:.3g} while {what}. Read the samples: "
                f"the reward may be met and not the task. Try {_closer(config)}."
            )
    return drifting


def _drift(key: str, first: float, last: float) -> tuple[str, str]:
    """Return a name and what has drifted; two empty texts where nothing has."""
    if key == "objective/kl" and last > max(FAR, first):
        return "reward up, far from the start", f"the KL to the start reached {last:.3g} nats"
    if key == "completions/mean_length" and last > LONGER * first:
        return "reward up with length", f"responses grew from {first:.3g} to {last:.3g} tokens"
    if key == "completions/mean_length" and last < SHORTER * first:
        return "reward up, length down", f"responses shrank from {first:.3g} to {last:.3g} tokens"
    if key == "completions/distinct_2" and last < LESS_VARIED * first:
        return "reward up, variety down", f"different pairs fell from {first:.0%} to {last:.0%}"
    if key == "completions/repeat_4gram" and last > first + REPEATED:
        return "reward up with repetition", f"repetition grew from {first:.0%} to {last:.0%}"
    return "", ""


def _closer(config: Config) -> str:
    """Return the setting that holds the policy closer to where it started."""
    ppo = config.ppo
    if ppo.kl_placement == "none":
        return "--ppo.kl-placement reward"
    name, default = ("kl-coef", 0.05) if ppo.kl_placement == "reward" else ("kl-loss-coef", 0.001)
    return f"--ppo.{name} {2 * ppo.kl_weight or default:g}"


def _rewards(values: Mapping[str, float], config: Config) -> dict[str, str]:
    problems = {}
    if failed := values.get("rewards/errors", 0.0):
        was = "was" if failed == 1 else "were"
        problems["failed rewards"] = (
            f"{counted(int(failed), 'reward')} failed and {was} left out; above "
            f"{config.ppo.max_error_rate:.0%} of a batch the run stops (--ppo.max-error-rate)."
        )
    # Numeric episodes that all reach their limit are equal too, and their steps still teach.
    scored = config.ppo.num_episodes - failed
    is_equal = values.get("objective/scores_std", 1.0) == 0.0
    if is_equal and scored > 1 and not config.is_control:
        problems["equal rewards"] = (
            f"the reward is the same for all {scored:g} episodes: there is nothing to learn from. "
            "Check the reward function, or raise --generation.temperature."
        )
    return problems


def _completions(values: Mapping[str, float], config: Config) -> dict[str, str]:
    problems = {}
    limit = config.generation.max_new_tokens
    cut = values.get("completions/clipped_ratio", 0.0)
    if cut > 0.5:
        problems["cut responses"] = (
            f"{cut:.0%} of responses stop at {limit} tokens. Their reward is of cut text. "
            f"Try --generation.max-new-tokens {2 * limit}."
        )
    if values.get("completions/eos_ratio") == 0.0:
        problems["no end token"] = (
            f"no response ended by itself in {LASTING['no end token']} iterations. Try "
            "--generation.eos-token-ids with the ids of this model's end tokens."
        )
    if unknown := values.get("completions/unknown_ratio", 0.0):
        problems["unknown ids"] = (
            f"{unknown:.1%} of sampled tokens are ids that the tokenizer does not hold (a padded "
            "vocabulary): they are not in the text that is scored. Never sample them: "
            "--generation.mask-unknown true, in a run of its own."
        )
    return problems


def _learning(values: Mapping[str, float], config: Config) -> dict[str, str]:
    problems = {}
    limit = config.ppo.target_kl
    moved = values.get("policy/approxkl_avg", 0.0)
    if limit is not None and moved > limit:
        problems["large step"] = (
            f"the policy moved by {moved:.2g} nats per action, over ppo.target_kl {limit:g}, in "
            f"{LASTING['large step']} iterations; later epochs are skipped. Try "
            f"--ppo.learning-rate {config.ppo.learning_rate / 2:.1e}."
        )
    # Where all returns are nearly equal there is nothing to explain.
    spread = values.get("advantages/std", 1.0) > 0.05 * abs(values.get("value/return_mean", 0.0))
    spread = spread and values.get("objective/scores_std", 1.0) > 0.0
    explained = values.get("value/explained_var", 0.0)
    if spread and explained < UNEXPLAINED:
        more = (
            f"--ppo.value-coef {2 * config.ppo.value_coef:g}"
            if config.ppo.critic == "shared"
            else f"--ppo.critic-learning-rate {2 * config.ppo.critic_learning_rate:.1e}"
        )
        problems["critic worse than the mean"] = (
            f"for {LASTING['critic worse than the mean']} iterations the critic has explained "
            "less than the mean reward would (value/explained_var "
            f"{explained:.2g}). Try {more}."
        )
    return problems


@final
class Alarms:
    """Watches a run: says each thing once, when it lasts, and counts the iterations it held."""

    def __init__(self, config: Config) -> None:
        """Begin with nothing seen."""
        self._config = config
        self.counts: Counter[str] = Counter()
        self._streaks: Counter[str] = Counter()
        self._first: list[dict[str, float]] = []
        self._last: list[dict[str, float]] = []

    def take(self, values: Mapping[str, float]) -> list[str]:
        """Take the metrics of an iteration; return the warnings that are new."""
        seen = {key: values[key] for key in WATCHED if key in values}
        if len(self._first) < WINDOW:
            self._first.append(seen)
        else:
            self._last = [*self._last, seen][-WINDOW:]
        problems = find_problems(values, self._config)
        if len(self._last) == WINDOW:
            problems |= drifts(_mean(self._first), _mean(self._last), self._config)
        self._streaks = Counter({name: self._streaks[name] + 1 for name in problems})
        messages = []
        for name, text in problems.items():
            if self._streaks[name] < LASTING.get(name, 1):
                continue
            messages += [] if name in self.counts else [text]
            self.counts[name] += 1
        return messages

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {
            "counts": dict(self.counts),
            "streaks": dict(self._streaks),
            "first": list(self._first),
            "last": list(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.counts, self._streaks = Counter(state["counts"]), Counter(state["streaks"])
        self._first, self._last = list(state["first"]), list(state["last"])


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row[key] for row in rows if key in row] for key in keys}
    return {key: sum(some) / len(some) for key, some in columns.items()}
