"""Names to objects: environment ids, plugins and addresses such as "package.module:Name".

An id is registered with strings only, so that its specification serialises and a spawned worker can
build it. Nothing here imports another module of the package: what it builds, it finds by address.
"""

import ast
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import gymnasium
from gymnasium.envs.registration import EnvSpec

from llmgym.errors import EnvContractError, PluginError
from llmgym.limits import ENV_TIMEOUT

ENTRY_POINT_GROUPS = ("llmgym.envs", "llmgym.rewards")

# Gymnasium's make and make_vec keep these keywords for themselves; `target` holds the address.
RESERVED = (
    "id",
    "target",
    "num_envs",
    "vectorization_mode",
    "vector_kwargs",
    "wrappers",
    "max_episode_steps",
)

# What every environment takes, for the messages about a name that is none.
ENV_SETTINGS = ("reward", "system", "render_mode")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")

_TAGS: dict[str, tuple[str, ...]] = {}
_PLUGINS: dict[str, str] = {}


def register(
    id: str,
    target: str,
    *,
    tags: Sequence[str] = (),
    nondeterministic: bool = False,
    **kwargs: Any,
) -> None:
    """Register an id for `gym.make` and `gym.make_vec`.

    Args:
        id: "namespace/Name-v0".
        target: "package.module:Name" of an `LLMEnv` class, or of a function that returns one.
        tags: words to list and filter environments by.
        nondeterministic: True where the same seed and actions may give another result.
        kwargs: plain JSON, handed to the target; `make(id, **kwargs)` overrides them.

    Raises:
        EnvContractError: the target is no address, or a keyword is reserved or no plain JSON.
    """
    if target.count(":") != 1:
        raise EnvContractError(
            f"The target of {id} must be an address, package.module:Name; received {target!r}"
        )
    _check_kwargs(id, kwargs)
    gymnasium.register(
        id,
        entry_point="llmgym.registry:create",
        vector_entry_point="llmgym.registry:create_vector",
        nondeterministic=nondeterministic,
        kwargs={"target": target, **kwargs},
    )
    _TAGS[id] = tuple(tags)


def create(target: str, *, wrap: Sequence[Mapping[str, Any]] = (), **kwargs: Any) -> gymnasium.Env:
    """Build one environment: what `gym.make` calls.

    Args:
        target: address of the class or function, from the registration.
        wrap: wrappers from the inside out, each {"name": "StripThink", ...its arguments}; a name
            is one of `llmgym.wrappers` or an address.
        kwargs: handed to the target.

    Raises:
        EnvContractError: the target or a wrapper has no such setting.
        PluginError: there is no such target or wrapper.
    """
    env = _build(target, kwargs)
    for entry in wrap:
        arguments = dict(entry)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise EnvContractError(f'A wrapper is given as {{"name": ..., ...}}; received {entry}')
        address = name if ":" in name else f"llmgym.wrappers:{name}"
        env = _build(address, {"env": env, **arguments})
    return env


def create_vector(
    target: str,
    *,
    num_envs: int = 1,
    executor: str = "inline",
    workers: int | None = None,
    env_timeout: float | None = ENV_TIMEOUT,
    **kwargs: Any,
) -> gymnasium.vector.VectorEnv:
    """Build N slots of one environment: what `gym.make_vec` calls.

    The slots come from one callable, so they form one score group: one scorer call a step.

    Raises:
        EnvContractError: `max_episode_steps` was given; a text episode is limited by `max_turns`.
    """
    if kwargs.pop("max_episode_steps", None) is not None:
        raise EnvContractError(
            "max_episode_steps does not reach a vector of text environments; pass max_turns=..."
        )
    make = functools.partial(create, target, **kwargs)
    vector = load("llmgym.vector:LLMVectorEnv")
    return vector([make] * num_envs, executor=executor, workers=workers, env_timeout=env_timeout)


def settings_of(found: EnvSpec, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `create_vector` for an id: those of its registration, then others.

    Raises:
        EnvContractError: one of the others would replace what the registry itself needs.
    """
    taken = sorted(set(kwargs) & set(RESERVED))
    if taken:
        raise EnvContractError(
            f"{', '.join(taken)} never reaches an environment: Gymnasium and the registry keep "
            "this keyword for themselves. Rename it where the environment is defined"
        )
    return {**found.kwargs, **kwargs}


def spec(id: str) -> EnvSpec:
    """Return the specification of an id.

    Raises:
        gymnasium.error.NameNotFound: the id is unknown; the message lists near matches, and which
            plugins were loaded.
        PluginError: `id` is "package.module:ns/Name-v0" and the module does not load.
    """
    module, _, name = id.rpartition(":")
    if module:
        load_plugins([module])
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    loaded = ", ".join(f"{plugin} ({state})" for plugin, state in _PLUGINS.items()) or "none"
    raise gymnasium.error.NameNotFound(
        f"No environment is registered as {name!r}.{hint} Plugins: {loaded}.\n"
        "If it is yours, name its module: --plugins my_package.envs. All that are there: "
        "llmgym envs list"
    )


def ids(tag: str | None = None) -> list[str]:
    """Return every id registered here, sorted; with a tag, those that carry it."""
    return sorted(id for id, tags in _TAGS.items() if tag is None or tag in tags)


def tags(id: str) -> tuple[str, ...]:
    """Return the tags an id was registered with; none for an id of another registrar."""
    return _TAGS.get(id, ())


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules that register environments or rewards, by name.

    Raises:
        PluginError: a module is missing or breaks while it is imported.
    """
    for module in modules:
        _module(module)
        _PLUGINS[module] = "loaded"


def load_entry_points() -> None:
    """Load the installed packages that announce themselves; a broken one is only a warning.

    An entry point is a module that registers when it is imported. In the group `llmgym.envs` it may
    be a function to call; in `llmgym.rewards`, the reward's own name and address.
    """
    for group in ENTRY_POINT_GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            try:
                plugin = entry.load()
                if group == "llmgym.rewards" and entry.attr:
                    load("llmgym.rewards.base:register_reward")(entry.name, entry.value)
                elif callable(plugin):
                    plugin()
            except (Exception, SystemExit):  # noqa: BLE001 - a stranger's code must not break ours
                _PLUGINS[entry.value] = "broken"
                warnings.warn(
                    f"The plugin {entry.name} = {entry.value} ({group}) did not load and is left "
                    f"out; repair or uninstall it.\n{traceback.format_exc()}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                _PLUGINS[entry.value] = "loaded"


def load(address: str) -> Any:  # noqa: ANN401 - an address may name anything
    """Return what an address names: "package.module:Name", or "path/to/file.py:name".

    Raises:
        PluginError: the module, the file or the name does not exist, or the module breaks.
    """
    place, _, name = address.rpartition(":")
    if not place or not name:
        file = place or name
        inside = _defined(Path(file)) if file.endswith(".py") else []
        names = f"; it has {', '.join(f'{file}:{one}' for one in inside)}" if inside else ""
        raise PluginError(
            f"An address is package.module:Name or file.py:name; got {address!r}{names}"
        )
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    try:
        return getattr(module, name)
    except AttributeError:
        public = _public_names(module)
        near = difflib.get_close_matches(name, public, n=3)
        names = ", ".join(public) or "nothing that can be named"
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {names}"
        raise PluginError(f"{place} has no {name!r}; {hint}") from None


def file_of(address: str) -> Path | None:
    """Return the file that an address leads to, without running any of it; None if there is none.

    Args:
        address: as `load` takes it, or "package.module:ns/Name-v0".
    """
    place = address.rpartition(":")[0]
    if place.endswith(".py"):
        file = os.path.realpath(os.path.expanduser(place))
        return Path(file) if os.path.isfile(file) else None
    parts = place.split(".")
    try:
        found = importlib.util.find_spec(parts[0])  # of a name without dots: imports nothing
    except (ImportError, ValueError):
        return None
    for depth in range(2, len(parts) + 1):
        inside = None if found is None else found.submodule_search_locations
        name = ".".join(parts[:depth])
        found = None if inside is None else PathFinder.find_spec(name, inside)
    origin = None if found is None else found.origin
    return Path(origin) if origin and Path(origin).is_file() else None


def _build(address: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    factory = load(address)
    try:
        return factory(**kwargs)
    except TypeError as error:
        unexpected = _UNEXPECTED.search(str(error))
        if unexpected is None or unexpected[1] not in kwargs:
            raise
        settings = [*inspect.signature(factory).parameters, *ENV_SETTINGS]
        near = difflib.get_close_matches(unexpected[1], settings, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(settings)}"
        raise EnvContractError(f"{address} has no setting {unexpected[1]!r}; {hint}") from error


def _public_names(module: ModuleType) -> list[str]:
    own = [key for key, value in vars(module).items() if _made_in(value) == module.__name__]
    return list(vars(module).get("__all__", own))


def _made_in(value: object) -> str | None:
    return getattr(value, "__module__", None)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        kind = "folder" if os.path.isdir(name) else "file" if os.path.lexists(name) else None
        hint = "It must be installed or lie on PYTHONPATH; the traceback above is its own"
        if kind and isinstance(error, ImportError | TypeError | ValueError):
            hint = (
                f"{name} is a {kind}. A module is named without a path and without .py, and its "
                "folder must lie on PYTHONPATH; what is in a file is named FILE.py:NAME"
            )
        message = f"The module {name} does not load: {type(error).__name__}: {error}. {hint}."
        raise PluginError(message) from error


def _file(path: Path) -> ModuleType:
    path = _found(path)
    # One file is one module, however often it is named: pickling and caches rely on it.
    name = f"llmgym_file_{path.stem}_{crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(path, error) from error
    return module


def _found(path: Path) -> Path:
    path = Path(os.path.realpath(os.path.expanduser(path)))
    # As all of os.path, False where a name is too long, or a loop of links.
    if os.path.isfile(path):
        return path
    if os.path.lexists(path):
        kind = "a folder" if os.path.isdir(path) else "no plain file"
        raise PluginError(f"{path} is {kind}; an address is file.py:name")
    beside = path.parent.glob("*.py") if os.path.isdir(path.parent) else ()
    near = difflib.get_close_matches(path.name, [one.name for one in beside if one.is_file()])
    hint = f"did you mean {' or '.join(near)}?" if near else "an address is file.py:name"
    raise PluginError(f"There is no file {path}; {hint}")


def _defined(path: Path) -> list[str]:
    """Return the functions and classes of a file, which is read and not run."""
    path = _found(path)
    try:
        body = ast.parse(path.read_bytes(), str(path)).body
    except SyntaxError as error:
        raise _broken(path, error) from error
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [one.name for one in body if isinstance(one, kinds) and not one.name.startswith("_")]


def _broken(path: Path, error: BaseException) -> PluginError:
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == str(path)]
    line, said = frames[-1].lineno if frames else 1, str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, said = error.lineno, error.msg
    return PluginError(f"The file does not load: {path}:{line}: {type(error).__name__}: {said}")


def _check_kwargs(id: str, kwargs: Mapping[str, Any]) -> None:
    for key, value in kwargs.items():
        if key in RESERVED:
            raise EnvContractError(f"{id}: {key!r} is Gymnasium's own keyword; rename it")
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise EnvContractError(
                f"{id}: {key}={value!r} is not plain JSON, so the id cannot be rebuilt elsewhere; "
                "name models, data and functions by path or address"
            )
