"""`llmgym envs`: what there is, how it looks, its contract, its cost, an audit, a start."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import tyro

from llmgym import registry
from llmgym.check import check
from llmgym.env import LLMEnv
from llmgym.episodes import JUNK, played
from llmgym.overhead import measure
from llmgym.plural import counted
from trainers.cli.options import parse_options
from trainers.cli.scaffold import files_of, id_of, scaffold
from trainers.config.files import typed
from trainers.errors import ConfigError
from trainers.redaction.text_files import write

Plugins = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class ListEnvs:
    """List the environments that are registered here."""

    filter: tyro.conf.Positional[str] = ""
    """Show ids and tags that contain this."""
    plugins: Plugins = ()
    """A module that registers environments; repeat it."""


@dataclass(frozen=True)
class Show:
    """Show one environment: spaces, a prompt, a good and a bad response with their rewards."""

    id: tyro.conf.Positional[str]
    """The id."""
    seed: int = 0
    """Which task."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; repeat it."""
    plugins: Plugins = ()
    """A module that registers environments; repeat it."""


@dataclass(frozen=True)
class Check:
    """Check the contract of one environment; a line for each failure, exit code 1 if any."""

    id: tyro.conf.Positional[str]
    """The id."""
    episodes: int = 20
    """Seeds to try."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; repeat it."""
    plugins: Plugins = ()
    """A module that registers environments; repeat it."""


@dataclass(frozen=True)
class Bench:
    """Time a step of one environment: in a vector of ours, a plain loop and Gymnasium's vector."""

    id: tyro.conf.Positional[str]
    """The id."""
    num_envs: tuple[int, ...] = (1, 64, 1024)
    """Slots of each measurement."""
    rounds: int = 5
    """Times that each is measured; the median counts."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; repeat it."""
    plugins: Plugins = ()
    """A module that registers environments; repeat it."""


@dataclass(frozen=True)
class AuditEnvs:
    """Measure what answers earn and what episodes disturb; exit code 1 if anything is wrong."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[ID]")] = ""
    """The id; without one, every id of --from."""
    libraries: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="from")
    ] = ()
    """The first part of ids, such as llmgym or reasoning_gym: all of them; repeat it."""
    episodes: int = 20
    """Tasks that each kind of answer is tried on."""
    kwargs: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, an argument of the environment; repeat it."""
    json: bool = False
    """Print one JSON object for each id."""
    page: Path | None = None
    """Also write the table to this file, in Markdown."""
    plugins: Plugins = ()
    """A module that registers environments; repeat it."""


@dataclass(frozen=True)
class New:
    """Write an installable package with an environment, its tasks, a test and a README."""

    name: tyro.conf.Positional[str]
    """Of the package: small letters, digits and underscores."""
    dir: Path = Path()
    """Where its folder is made."""
    turns: bool = False
    """Let an episode have several turns, of a game that answers; else one response ends it."""


Command = (
    Annotated[ListEnvs, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[AuditEnvs, tyro.conf.subcommand("audit")]
    | Annotated[New, tyro.conf.subcommand("new")]
)


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Return NAME=VALUE words as a mapping, the values read as YAML.

    Raises:
        ConfigError: a word has no equals sign.
    """
    kwargs = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--kwargs takes NAME=VALUE, got {pair!r}.")
        kwargs[name] = typed(f"envs.0.kwargs.{name}", [value])
    return kwargs


def show_list(command: ListEnvs) -> int:
    """Print a line for each id."""
    every = sorted([*registry.ids(), *registry.numeric_ids()])
    rows = [(env_id, ", ".join(registry.tags(env_id))) for env_id in every]
    shown = [row for row in rows if command.filter.lower() in " ".join(row).lower()]
    width = max((len(env_id) for env_id, _ in shown), default=0)
    for env_id, tags in shown:
        print(f"{env_id:<{width}}  {tags}")
    if not shown:
        print(f"none of {len(rows)} ids contains {command.filter!r}")
    return 0


def as_text(observation: str | Sequence[Any]) -> str:
    """Return a prompt as it reads; of messages, each with its role."""
    if isinstance(observation, str):
        return observation
    return "\n".join(f"[{message['role']}] {message['content']}" for message in observation)


def show_env(command: Show) -> int:
    """Print spaces, prompt, a good and a bad response."""
    env = gymnasium.make(
        registry.spec(command.id), disable_env_checker=True, **arguments(command.kwargs)
    )
    print(f"id           {command.id}  {', '.join(registry.tags(command.id))}")
    print(f"observation  {env.observation_space}")
    print(f"action       {env.action_space}")
    observation, _ = env.reset(seed=command.seed)
    inner = env.unwrapped
    if not isinstance(inner, LLMEnv):
        print(f"first        {observation}")
        return 0
    low, high = inner.reward_bounds
    print(f"reward       {low:g} to {high:g}")
    print(f"prompt       {as_text(observation)}")
    for word, action in (("good", None), ("bad", JUNK["prose"])):
        env.reset(seed=command.seed)
        if action is not None or inner.solve() is not None:
            print(f"{word:<12} {earned(env, action)}")
    return 0


def earned(env: gymnasium.Env, action: str | None) -> str:
    """Return what was answered in a whole episode, and what it earned together.

    Args:
        env: reset.
        action: the answer of every turn; None for the environment's own solutions.
    """
    steps = played(env, action)
    groups = [(answer, len([*same])) for answer, same in groupby(answer for answer, _ in steps)]
    shown = ", ".join(f"{value!r}{f' {n} times' if n > 1 else ''}" for value, n in groups)
    if len(steps) > 1:
        shown += f" in {len(steps)} turns"
    for _, (*_, info) in steps:
        if not info["reward_valid"]:
            return f"{shown} earns nothing, since the reward failed: {info.get('reward_error')}"
    return f"{shown} earns {sum(float(result[1]) for _, result in steps):g}"


def run_check(command: Check) -> int:
    """Print a line for each failure."""
    registry.spec(command.id)
    lines = check(command.id, episodes=command.episodes, **arguments(command.kwargs))
    for line in lines:
        print(line)
    print(f"{command.id}: {counted(len(lines), 'failure') if lines else 'ok'}")
    return 1 if lines else 0


def run_bench(command: Bench) -> int:
    """Print a row for each number of slots.

    Raises:
        ConfigError: a number is below 1, or the id is no environment of text.
    """
    if command.rounds < 1 or not command.num_envs or min(command.num_envs) < 1:
        raise ConfigError("--num-envs and --rounds are 1 or more.")
    registry.spec(command.id)
    if command.id.rpartition(":")[2] not in registry.ids():
        raise ConfigError(f"{command.id} is no environment of text that llmgym registered.")
    print("slots   step ms   per slot us   plain loop   SyncVectorEnv   reset ms   scorer calls")
    for count in command.num_envs:
        row = measure(command.id, count, rounds=command.rounds, kwargs=arguments(command.kwargs))
        print(
            f"{count:>5}   {1e3 * row.vector:>7.2f}   {1e6 * row.vector / count:>11.1f}   "
            f"{f'{row.ratio:.2f} x':>10}   {f'{row.vector / row.sync:.2f} x':>13}   "
            f"{1e3 * row.reset:>8.2f}   {row.scorer_calls:>12}"
        )
    print("A factor is how long a step of LLMVectorEnv takes, in steps of the other.")
    return 0


def run_audit(command: AuditEnvs) -> int:
    """Print what was measured of each id."""
    from llmgym.audit import audit
    from llmgym.audit_page import lines_of, page

    if command.episodes < 1:
        raise ConfigError(f"--episodes is 1 or more, got {command.episodes}.")
    if bool(command.id) == bool(command.libraries):
        raise ConfigError("envs audit takes an id, or --from LIBRARY, such as --from llmgym.")
    ids = [command.id] if command.id else _ids_of(command.libraries)
    kwargs, audits = arguments(command.kwargs), []
    for env_id in ids:
        audits.append(audit(env_id, episodes=command.episodes, **kwargs))
        if command.json:
            print(json.dumps(audits[-1].as_json()), flush=True)
        else:
            print("\n".join(lines_of(audits[-1])), flush=True)
    if command.page is not None:
        words = [*(f"--from {name}" for name in command.libraries), f"--page {command.page}"]
        write(command.page, page(audits, f"llmgym envs audit {' '.join(words)}"))
    return 1 if any(result.faults for result in audits) else 0


def _ids_of(libraries: Sequence[str]) -> list[str]:
    """Return the ids of text whose first part is one of these.

    Raises:
        ConfigError: there is none of one of them.
    """
    ids: list[str] = []
    for library in libraries:
        own = [env_id for env_id in registry.ids() if env_id.partition("/")[0] == library]
        if not own:
            known = sorted({env_id.partition("/")[0] for env_id in registry.ids()})
            raise ConfigError(
                f"no id begins with {library}/. There are those of {', '.join(known)}; of another "
                "library, install it (docs/guides/readers.md), or name its --plugins."
            )
        ids += own
    return ids


def new(command: New) -> int:
    """Write a package and print what to do with it."""
    folder = scaffold(command.name, command.dir, turns=command.turns)
    env_id = id_of(command.name)
    for path in files_of(command.name, turns=command.turns):
        print(folder / path)
    print(f"Next      pip install -e {folder}")
    print(f"          pytest {folder}/tests")
    print(f"          llmgym envs check {env_id}")
    print(f"          llmgym train --envs.0.id {env_id} --model.path MODEL --name {command.name}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run list, show, check, bench, audit or new."""
    command: Command = parse_options(Command, argv, "envs")
    if isinstance(command, New):
        return new(command)
    registry.load_plugins(command.plugins)
    if isinstance(command, ListEnvs):
        return show_list(command)
    if isinstance(command, Bench):
        return run_bench(command)
    if isinstance(command, AuditEnvs):
        return run_audit(command)
    return show_env(command) if isinstance(command, Show) else run_check(command)
