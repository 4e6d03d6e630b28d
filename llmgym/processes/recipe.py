"""What another process shall build, by name: an id or an address, with plain arguments.

Nothing of an environment is pickled: its class and its data are found where they are built.
"""

import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from typing import Any, final

import gymnasium
from gymnasium.envs.registration import EnvSpec

from llmgym import registry
from llmgym.addresses import load
from llmgym.errors import EnvContractError

REMEDY = (
    "Name it: an id, PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION, or functools.partial of a "
    "function at the top of a module"
)


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """An environment by name.

    Attributes:
        target: a registered id, "package.module:ns/Name-v0", "package.module:function" or
            "file.py:function".
        kwargs: its arguments.
        args: arguments without names, of a function alone.
        spec: of an id, as it is registered here; it may be of a plugin.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    spec: EnvSpec | None = None

    @property
    def is_id(self) -> bool:
        """Whether the target is an id, and no function."""
        module, _, name = self.target.rpartition(":")
        return not module or "/" in name or "-v" in name

    def build(self) -> gymnasium.Env:
        """Build the environment in this process.

        Raises:
            gymnasium.error.NameNotFound: the id is unknown.
            PluginError: the module, file or function does not exist, or breaks.
        """
        if self.is_id:
            if self.spec is not None:
                gymnasium.registry.setdefault(self.spec.id, self.spec)
            spec = self.spec or registry.spec(self.target)
            return gymnasium.make(spec, disable_env_checker=True, **self.kwargs)
        return load(self.target)(*self.args, **self.kwargs)


def recipe_of(make: object, kwargs: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of what a caller names.

    Args:
        make: an id, an address, an `EnvSpec`, a function at the top of a module, or a
            `functools.partial` of one.
        kwargs: its arguments.

    Raises:
        gymnasium.error.NameNotFound: the id is unknown.
        EnvContractError: it has no name that another process finds, or arguments that cannot be
            sent there.
    """
    arguments, args = dict(kwargs or {}), ()
    while isinstance(make, functools.partial):
        arguments, args = {**make.keywords, **arguments}, (*make.args, *args)
        make = make.func
    if make is gymnasium.make and args:
        make, args = args[0], args[1:]
        arguments.pop("disable_env_checker", None)
    if isinstance(make, EnvSpec):
        recipe = Recipe(make.id, arguments, spec=make)
    else:
        recipe = Recipe(make if isinstance(make, str) else _address_of(make), arguments, args)
        if recipe.is_id:
            recipe = replace(recipe, spec=registry.spec(recipe.target))
    _check_sendable(recipe)
    return recipe


def _address_of(function: object) -> str:
    """Return the address of a function or class."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or module is None or name is None:
        raise EnvContractError(
            f"An environment of another process has a name; got {function!r:.60}. {REMEDY}"
        )
    loaded = sys.modules.get(module)
    if "<" in name or getattr(loaded, name, None) is not function:
        raise EnvContractError(
            f"Another process does not find {module}.{name}, as it is not at the top of its "
            f"module. {REMEDY}"
        )
    if module != "__main__" and _is_importable(module):
        return f"{module}:{name}"
    file = inspect.getsourcefile(_as_callable(function))
    if file is None or not file.endswith(".py"):
        raise EnvContractError(f"Another process does not find {module}.{name}. {REMEDY}")
    return f"{file}:{name}"


def _as_callable(function: Any) -> Callable[..., Any]:  # noqa: ANN401 - a function or a class
    return function


def _is_importable(module: str) -> bool:
    """Return whether a module is found by its name, and not only because it is loaded."""
    top = module.partition(".")[0]
    return top in sys.builtin_module_names or PathFinder.find_spec(top) is not None


def _check_sendable(recipe: Recipe) -> None:
    registration = () if recipe.spec is None else (("registration", recipe.spec),)
    for name, value in (*recipe.kwargs.items(), *enumerate(recipe.args), *registration):
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EnvContractError(
                f"The argument {name} of {recipe.target} cannot be sent to another process: "
                f"{error}. Name files, models and functions by path or address"
            ) from error
