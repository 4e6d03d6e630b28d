"""Names to environments: the ids that are registered, and the plugins that register them.

An id is registered with strings only, so that its specification serialises and a spawned worker can
build it. Nothing here imports an environment: what is built is found by its address.
"""

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from llmgym.addresses import load, load_module
from llmgym.errors import EnvContractError
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
# Gymnasium reads "x-v0-hard" as an id without version, and refuses a second slash later on.
_ID = re.compile(r"(?:[\w:-]+/)?(?![\w:.-]*-v\d+[\w:.-]*-)[\w:.-]+")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")

_TAGS: dict[str, tuple[str, ...]] = {}
_NUMERIC: dict[str, tuple[str, ...]] = {}
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
        EnvContractError: the id would be read as another one, or means another environment
            already; the target is no address; or a keyword is reserved or no plain JSON.
    """
    _check_new(id, target, kwargs)
    _TAGS[id] = tuple(tags)
    if id not in gymnasium.registry:
        gymnasium.register(
            id,
            entry_point="llmgym.registry:create",
            vector_entry_point="llmgym.registry:create_vector",
            nondeterministic=nondeterministic,
            kwargs={"target": target, **kwargs},
        )


def register_numeric(id: str, target: str, *, tags: Sequence[str] = (), **kwargs: Any) -> None:
    """Register an environment of numbers: as `register`, for `gym.make` alone.

    `ids` does not list it, and `make_vec` builds Gymnasium's own vectors of it.

    Raises:
        EnvContractError: as of `register`.
    """
    _check_new(id, target, kwargs)
    _NUMERIC[id] = tuple(tags)
    if id not in gymnasium.registry:
        gymnasium.register(
            id, entry_point="llmgym.registry:create", kwargs={"target": target, **kwargs}
        )


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
    memory_gb: float | None = None,
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
    return vector(
        [make] * num_envs,
        executor=executor,
        workers=workers,
        env_timeout=env_timeout,
        memory_gb=memory_gb,
    )


def settings_of(env_spec: EnvSpec, kwargs: Mapping[str, Any]) -> dict[str, Any]:
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
    return {**env_spec.kwargs, **kwargs}


def spec(id: str) -> EnvSpec:
    """Return the specification of an id.

    Raises:
        gymnasium.error.NameNotFound: the id is unknown; the message lists near matches, and which
            plugins were loaded.
        MissingExtraError: the id is read from a library that is not installed.
        PluginError: `id` is "package.module:ns/Name-v0" and the module does not load; or a reader
            of another library leaves it out, with the reason.
    """
    module, _, name = id.rpartition(":")
    if module:
        load_plugins([module])
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    load("llmgym.adapters.registration:check_readable")(name)
    near = difflib.get_close_matches(name, list(gymnasium.registry), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    loaded = ", ".join(f"{plugin} ({state})" for plugin, state in _PLUGINS.items()) or "none"
    raise gymnasium.error.NameNotFound(
        f"No environment is registered as {name!r}.{hint} Plugins: {loaded}.\n"
        "If it is yours, name its module: --plugins my_package.envs. All that are there: "
        "llmgym envs list"
    )


def ids(tag: str | None = None) -> list[str]:
    """Return every id of text registered here, sorted; with a tag, those that carry it."""
    return sorted(id for id, tags in _TAGS.items() if tag is None or tag in tags)


def numeric_ids() -> list[str]:
    """Return every id of an environment of numbers that is registered here, sorted."""
    return sorted(_NUMERIC)


def tags(id: str) -> tuple[str, ...]:
    """Return the tags an id was registered with; none for an id of another registrar."""
    return _TAGS.get(id, _NUMERIC.get(id, ()))


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules that register environments or rewards, by name.

    Raises:
        PluginError: a module is missing or breaks while it is imported.
    """
    for module in modules:
        load_module(module)
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


def _check_new(id: str, target: str, kwargs: Mapping[str, Any]) -> None:
    """Raise what is wrong with a registration, before Gymnasium keeps it."""
    if not _ID.fullmatch(id):
        raise EnvContractError(
            f"{id!r} is no id: it is namespace/Name-v0, one slash, and the version at its end"
        )
    if target.count(":") != 1:
        raise EnvContractError(
            f"The target of {id} must be an address, package.module:Name; received {target!r}"
        )
    _check_kwargs(id, kwargs)
    before = gymnasium.registry.get(id)
    if before is not None and before.kwargs != {"target": target, **kwargs}:
        raise EnvContractError(
            f"{id} is registered already, as {before.kwargs.get('target') or before.entry_point}; "
            f"{target} needs another name or version"
        )


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
