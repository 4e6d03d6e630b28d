"""Addresses to objects: "package.module:Name", or "path/to/file.py:name"."""

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from llmgym.errors import PluginError

_NAMES: dict[str, str] = {}
"""Modules by the absolute path of their file, so that many slots do not all look for it."""


def load(address: str) -> Any:  # noqa: ANN401 - an address may name anything
    """Return what an address names: "package.module:Name", or "path/to/file.py:name".

    Raises:
        PluginError: the module, the file or the name does not exist, or the module breaks.
    """
    place, _, name = address.rpartition(":")
    if not place or not name:
        file = place or name
        inside = _defined(Path(file)) if file.endswith(".py") else []
        names = f"; it has {', '.join(f'{file}:{name}' for name in inside)}" if inside else ""
        raise PluginError(
            f"An address is package.module:Name or file.py:name; got {address!r}{names}"
        )
    module = _file(place) if place.endswith(".py") else load_module(place)
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
        module_spec = importlib.util.find_spec(parts[0])  # of a name without dots: imports nothing
    except (ImportError, ValueError):
        return None
    for depth in range(2, len(parts) + 1):
        inside = None if module_spec is None else module_spec.submodule_search_locations
        name = ".".join(parts[:depth])
        module_spec = None if inside is None else PathFinder.find_spec(name, inside)
    origin = None if module_spec is None else module_spec.origin
    return Path(origin) if origin and Path(origin).is_file() else None


def _public_names(module: ModuleType) -> list[str]:
    own = [key for key, value in vars(module).items() if _made_in(value) == module.__name__]
    return list(vars(module).get("__all__", own))


def _made_in(value: object) -> str | None:
    return getattr(value, "__module__", None)


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name.

    Raises:
        PluginError: it is missing, or breaks while it is imported.
    """
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


def _file(place: str) -> ModuleType:
    known = sys.modules.get(_NAMES.get(place, ""))
    if known is not None:
        return known
    path = _resolved(Path(place))
    # One file is one module, however often it is named: pickling and caches rely on it.
    name = f"llmgym_file_{path.stem}_{crc32(str(path).encode()):08x}"
    module = sys.modules.get(name) or _module(path, name)
    if os.path.isabs(place):
        _NAMES[place] = name
    return module


def _module(path: Path, name: str) -> ModuleType:
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


def _resolved(path: Path) -> Path:
    path = Path(os.path.realpath(os.path.expanduser(path)))
    # As all of os.path, False where a name is too long, or a loop of links.
    if os.path.isfile(path):
        return path
    if os.path.lexists(path):
        kind = "a folder" if os.path.isdir(path) else "no plain file"
        raise PluginError(f"{path} is {kind}; an address is file.py:name")
    beside = path.parent.glob("*.py") if os.path.isdir(path.parent) else ()
    near = difflib.get_close_matches(path.name, [entry.name for entry in beside if entry.is_file()])
    hint = f"did you mean {' or '.join(near)}?" if near else "an address is file.py:name"
    raise PluginError(f"There is no file {path}; {hint}")


def _defined(path: Path) -> list[str]:
    """Return the functions and classes of a file, which is read and not run."""
    path = _resolved(path)
    try:
        body = ast.parse(path.read_bytes(), str(path)).body
    except SyntaxError as error:
        raise _broken(path, error) from error
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _broken(path: Path, error: BaseException) -> PluginError:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    line, message = frames[-1].lineno if frames else 1, str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, message = error.lineno, error.msg
    return PluginError(f"The file does not load: {path}:{line}: {type(error).__name__}: {message}")
