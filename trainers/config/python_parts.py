"""What Python gives a run instead of settings: an environment, a reward; and their source.

A run names them in its settings, as `python:NAME`, so that its record, its metrics and its resume
have them. Only Python can build them again. No torch.
"""

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Literal, cast

from pydantic import ValidationError

from llmgym.rewards.base import PerSample, Reward, name_of
from llmgym.rewards.function import FunctionReward
from llmgym.rewards.scale import Composed
from trainers.config.environments import EnvFactory
from trainers.config.settings import Config, RewardConfig
from trainers.errors import ConfigError

Role = Literal["env", "reward"]
Spec = str | Mapping[str, Any] | Sequence[Any]

PREFIX = "python:"
"""How the setting of an object from Python begins."""
RECORD = "python.json"
"""The file of a run folder that says where its objects from Python are written."""
LAMBDA = "lambda"


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonPart:
    """An object that Python gave to a run.

    Attributes:
        role: the argument of `trainers.run`.
        name: of the function or class; a reward's own `name`; `lambda`.
        word: what the call is written with, `...` where the object has no name of its own.
        file: where its source is; empty where it has none, as a function written in C.
        line: of that file, from 1.
        digest: of its source and of the plain values it holds; empty where it has no source.
    """

    role: Role
    name: str
    word: str
    file: str
    line: int
    digest: str

    @property
    def setting(self) -> str:
        """The text for it in the settings."""
        return PREFIX + self.name

    @property
    def place(self) -> str:
        """Where it is written, for a message."""
        return f"{self.file}:{self.line}" if self.file else "a place that Python does not tell"


def describe_part(role: Role, part: object) -> PythonPart:
    """Return name, place and digest of an object that Python gave."""
    inner, values = _unwrapped(part)
    text, file, line = _source(inner)
    is_plain = inner is part and isinstance(inner, FunctionType | type)
    name = part.name if isinstance(part, Reward) and not isinstance(part, type) else _name(part)
    digest = hashlib.sha256(f"{text}\n{values}".encode()).hexdigest()[:12] if text else ""
    word = name if is_plain and name != LAMBDA else "..."
    return PythonPart(role=role, name=name, word=word, file=file, line=line, digest=digest)


def _name(part: object) -> str:
    if isinstance(part, functools.partial):
        return _name(part.func)
    if inspect.ismethod(part):
        owner = part.__self__
        kind = owner if isinstance(owner, type) else type(owner)
        return f"{kind.__name__}.{part.__name__}"
    return name_of(part).replace("<lambda>", LAMBDA) if callable(part) else type(part).__name__


def _unwrapped(part: object) -> tuple[Any, str]:
    """Return the function or class that an object comes down to, and the values that it holds."""
    values: list[Any] = []
    inner: Any = part
    while True:
        if isinstance(inner, functools.partial):
            values.append([inner.args, inner.keywords])
            inner = inner.func
        elif isinstance(inner, PerSample | FunctionReward):
            inner = inner.fn
        elif inspect.ismethod(inner):
            inner = inner.__func__
        else:
            break
    if isinstance(inner, Composed):
        values += [describe_part("reward", reward).digest for reward in inner.inner().values()]
    if isinstance(inner, FunctionType):
        values.append([_content(cell) for cell in inner.__closure__ or ()])
    elif not inspect.isroutine(inner) and not isinstance(inner, type):
        inner = cast(Any, type(inner))
    return inner, json.dumps(values, sort_keys=True, default=_shown)


def _content(cell: Any) -> Any:  # noqa: ANN401 - a cell of a closure, which may hold anything
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _shown(value: object) -> str:
    """Return a placeholder for a value that is not plain: its address is new in every process."""
    return describe_part("reward", value).digest if callable(value) else type(value).__name__


def _source(inner: Any) -> tuple[str, str, int]:  # noqa: ANN401 - a function or a class
    """Return source, file and line, all empty where there are none."""
    try:
        lines, number = inspect.findsource(inspect.unwrap(inner))
        file = inspect.getsourcefile(inspect.unwrap(inner)) or ""
        line = number + 1
        if name_of(inner) == "<lambda>":
            return _lambdas("".join(lines), line), file, line
        return inspect.cleandoc("".join(inspect.getblock(lines[number:]))), file, line
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or written in C
        return " ".join(_codes(inner)), "", 0


def _lambdas(text: str, line: int) -> str:
    """Return the lambdas of a line alone: the call around them may change."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Lambda)]
    return "\n".join(ast.unparse(node) for node in nodes if node.lineno == line)


def _codes(inner: Any) -> Iterator[str]:  # noqa: ANN401 - a function or a class
    functions = vars(inner).values() if isinstance(inner, type) else [inner]
    for function in functions:
        if isinstance(function, FunctionType):
            yield from _instructions(function.__code__)


def _instructions(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    for constant in (*code.co_names, *code.co_consts):
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(constant)


def from_python(
    config: Config, *, env: EnvFactory | str | None, reward: object | None
) -> tuple[Config, EnvFactory | None, object | None, list[PythonPart]]:
    """Return the settings that name what Python gives, and what no setting can name.

    Args:
        config: settings.
        env: an id replaces that of `envs`; a callable is named in its place.
        reward: a name, an address, a mapping or a list of them replaces `rewards`; an object is
            named in their place.

    Returns:
        The settings; the environment's callable; the reward's object; a record of both.

    Raises:
        ConfigError: one is neither, or the settings name an object that was not given.
    """
    parts: list[PythonPart] = []
    if env is not None and not isinstance(env, str):
        if not callable(env):
            raise ConfigError(
                f"env is the id of an environment or what makes one, got {type(env).__name__}. "
                "Give its class, or a function that returns a new one at every call."
            )
        parts.append(describe_part("env", env))
    name = env if isinstance(env, str) else parts[0].setting if parts else None
    if name is not None:
        config = replace(config, envs=[replace(config.env, id=name, weight=1.0)])
    if isinstance(reward, str | Mapping | list | tuple):
        config, reward = replace(config, rewards=_entries(cast(Spec, reward))), None
    elif reward is not None:
        parts.append(describe_part("reward", reward))
        config = replace(config, rewards=[RewardConfig(name=parts[-1].setting)])
    _check_given(config, {part.setting for part in parts})
    return config, None if isinstance(env, str) else env, reward, parts


def _entries(spec: Spec) -> list[RewardConfig]:
    """Return the settings that mean what `resolve` understands."""
    if isinstance(spec, str):
        spec = {"function" if ":" in spec else "name": spec}
    try:
        return [
            RewardConfig(**settings) for settings in ([spec] if isinstance(spec, Mapping) else spec)
        ]
    except (ValidationError, TypeError) as error:
        raise ConfigError(
            f"reward is a function, a Reward, a name, or what the setting rewards holds: {error}"
        ) from error


def _check_given(config: Config, settings: set[str]) -> None:
    missing = {role: name for role, name in named_in(config).items() if name not in settings}
    if missing:
        words = ", ".join(f"{role}={name.removeprefix(PREFIX)}" for role, name in missing.items())
        raise ConfigError(
            f"the settings are of a run that Python gave {words}, and this call gives none. "
            f"Give it again: trainers.run(config, {words})"
        )


def named_in(config: Config) -> dict[Role, str]:
    """Return the objects from Python that settings name, by the argument that gave them."""
    names: dict[Role, str] = {}
    if config.env.id.startswith(PREFIX):
        names["env"] = config.env.id
    for reward in config.rewards:
        if (reward.name or "").startswith(PREFIX):
            names["reward"] = str(reward.name)
    return names


def record(parts: Sequence[PythonPart]) -> str:
    """Return the contents of `RECORD`."""
    return json.dumps([asdict(part) for part in parts], indent=1) + "\n"


def recorded(run: Path) -> list[PythonPart]:
    """Return what Python gave to the run of a folder; nothing where its record cannot be read."""
    try:
        return [PythonPart(**fields) for fields in json.loads((run / RECORD).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def call(config: Config, run: Path, changes: Mapping[str, Any] | None = None) -> str:
    """Return the Python call that continues a run.

    Args:
        config: settings that name what Python gave, where the folder has no record of it.
        run: its folder.
        changes: settings that are to be others.
    """
    words: list[str] = []
    places: list[str] = []
    for part in recorded(run) or [_unknown(*named) for named in named_in(config).items()]:
        words.append(f"{part.role}={part.word}")
        places.append(f"{part.role} is {part.name} of {part.place}")
    settings = f"read([Path({str(run / 'config.yaml')!r})]{f', {changes}' if changes else ''})"
    return f"trainers.run({settings}, {', '.join(words)}, resume=True)  # {', '.join(places)}"


def _unknown(role: Role, setting: str) -> PythonPart:
    name = setting.removeprefix(PREFIX)
    return PythonPart(role=role, name=name, word="...", file="", line=0, digest="")


def refuse_other_parts(run: Path, config: Config) -> None:
    """Refuse to continue a run without what Python gave it.

    Raises:
        ConfigError: the settings do not name it; says the Python call to use.
    """
    before = {part.role: part.setting for part in recorded(run)}
    if before and before != named_in(config):
        words = " and ".join(f"{role} {name}" for role, name in before.items())
        now = " and ".join(f"{role} {name}" for role, name in named_in(config).items())
        raise ConfigError(
            f"{run} was started from Python with {words}, and this start gives {now or 'neither'}. "
            f"Give the same:\n{call(config, run)}"
        )


def refuse_command_line(config: Config, run: Path) -> None:
    """Refuse to build from settings alone what only Python can give.

    Args:
        config: settings of the run.
        run: its folder, for the message.

    Raises:
        ConfigError: the settings name such an object; says which, and the Python call to use.
    """
    named = named_in(config)
    if named:
        words = " and ".join(f"{role} {name}" for role, name in named.items())
        raise ConfigError(
            f"{run} was started from Python, which gave it {words}: no command line can build "
            f"that. In Python, with `read` of trainers.config.files:\n{call(config, run)}"
        )
