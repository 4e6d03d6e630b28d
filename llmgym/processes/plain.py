"""Plain data: what crosses from an environment's process to the one that trains.

Numbers, texts, arrays, lists, mappings, and records: data classes, enumerations and spaces of
modules that the reader has loaded itself. Reading imports nothing and calls nothing else, so a
process that broke cannot run code where it is read.
"""

import dataclasses
import enum
import io
import pickle
import sys
from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces

from llmgym.errors import EnvContractError
from llmgym.spaces import Text

MAX_SHOWN = 1_000
"""Characters of the text that stands for an object of another kind."""

_ATOMS = (bool, int, float, complex, str, bytes, type(None))
_CALLABLE = {
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "complex"),
    ("builtins", "bytearray"),
    ("builtins", "slice"),
    ("builtins", "range"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("fractions", "Fraction"),
    ("decimal", "Decimal"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("types", "MappingProxyType"),
    ("pathlib", "PosixPath"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
    ("numpy.random.bit_generator", "SeedSequence"),
    ("numpy.random._pickle", "__generator_ctor"),
    ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random._pcg64", "PCG64"),
    ("numpy.random._mt19937", "MT19937"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}
"""What the pickles of plain data name besides records."""


@runtime_checkable
class _Tensor(Protocol):
    """A tensor of torch, which nothing here imports."""

    def detach(self) -> Any: ...  # noqa: ANN401 - a tensor

    def cpu(self) -> Any: ...  # noqa: ANN401 - a tensor


@runtime_checkable
class _Array(Protocol):
    """What NumPy makes an array of."""

    def __array__(self) -> Any: ...  # noqa: ANN401 - an array


def plain(value: Any) -> Any:  # noqa: ANN401 - any value of an observation or info
    """Return a value as plain data; an object of another kind becomes its text."""
    kind = type(value)
    if kind in _ATOMS or isinstance(value, np.generic):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    array = _as_array(value)
    if array is not None:
        return array
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, Sequence | Set):
        return [plain(item) for item in value]
    return repr(value)[:MAX_SHOWN]


def plain_observation(value: Any) -> Any:  # noqa: ANN401 - as `plain`
    """Return an observation as plain data.

    Raises:
        EnvContractError: it is an object of another kind, which a policy could not read.
    """
    crossed = plain(value)
    if isinstance(crossed, str) and not isinstance(value, str | enum.Enum):
        raise EnvContractError(
            f"The observation is a {type(value).__name__}, which is no plain data: return text, "
            "numbers, arrays, or lists and mappings of these"
        )
    return crossed


def plain_space(space: gymnasium.Space[Any]) -> gymnasium.Space[Any]:
    """Return a space that another process can load: one of another library's texts is `Text`.

    Raises:
        EnvContractError: a space of another library that holds something else than text.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: plain_space(inner) for name, inner in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple(tuple(map(plain_space, space.spaces)))
    if type(space).__module__.startswith(("gymnasium.", "llmgym.")):
        return space
    if isinstance(space, spaces.Text) or isinstance(space.sample(), str):
        return Text()
    kind = f"{type(space).__module__}.{type(space).__name__}"
    raise EnvContractError(
        f"The space {kind} cannot cross to another process: wrap the environment in one that has "
        "spaces of Gymnasium"
    )


def dumped(value: object) -> bytes:
    """Return a value pickled.

    Raises:
        EnvContractError: it holds what cannot be pickled.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EnvContractError(
            f"It holds what cannot cross to another process: {error}. Keep to plain data"
        ) from error


def loaded(data: bytes) -> Any:  # noqa: ANN401 - whatever was dumped
    """Return what `dumped` wrote in another process.

    Raises:
        EnvContractError: it names something else than plain data and records.
    """
    try:
        return _Reader(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise EnvContractError(f"What an environment sent cannot be read: {error}") from error


class _Reader(pickle.Unpickler):
    """Reads plain data and records."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as of its base
        """Return what a pickle names, where it is plain data or a record."""
        if (module, name) in _CALLABLE:
            return super().find_class(module, name)
        value: Any = sys.modules.get(module)
        for part in name.split("."):
            value = getattr(value, part, None)
        is_space = module.startswith(("gymnasium.spaces.", "llmgym.spaces"))
        if isinstance(value, type) and (is_space or _is_record(value)):
            return value
        raise pickle.UnpicklingError(
            f"{module}.{name} is neither plain data nor a record of a module that is loaded here"
        )


def _is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum | str | tuple)


def _key(key: Any) -> Any:  # noqa: ANN401 - a mapping's key
    crossed = plain(key)
    return crossed if isinstance(crossed, (*_ATOMS, tuple, np.generic)) else str(crossed)


def _as_array(value: Any) -> np.ndarray | list[Any] | None:  # noqa: ANN401 - any value
    if isinstance(value, _Tensor):
        value = value.detach().cpu()  # it may need gradients, or lie on a GPU
    if not isinstance(value, np.ndarray | _Array):
        return None
    array = np.asarray(value)
    return [plain(item) for item in array.tolist()] if array.dtype.hasobject else array
