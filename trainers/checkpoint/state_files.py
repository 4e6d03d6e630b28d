"""State on disk and back, without loss and without pickle: JSON and safetensors.

A state is nested dicts, lists and tuples of tensors, arrays and plain values. Tensors and arrays
go to `PART.safetensors`, all else to `PART.json`; both are read without running anything in them.
What JSON cannot say is written as {"$": kind, "v": value}.
"""

import base64
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = Mapping[str, Any]

_PLAIN = (type(None), bool, int, str)
_TAG, _VALUE = "$", "v"


def write_state(state: State, folder: Path, part: str) -> list[str]:
    """Write a state as `part`.json and, if it holds tensors, `part`.safetensors; return which.

    Raises:
        TypeError: a value that cannot be written without loss; names where it is.
        OSError: the disk refused.
        SafetensorError: the disk refused the tensors.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(state, part, tensors), allow_nan=False, indent=0)
    (folder / f"{part}.json").write_text(text, encoding="ascii")
    if not tensors:
        return [f"{part}.json"]
    save_file(_unshared(tensors), folder / f"{part}.safetensors")
    return [f"{part}.json", f"{part}.safetensors"]


def read_state(folder: Path, part: str) -> dict[str, Any]:
    """Return what `write_state` wrote, the tensors on the CPU."""
    tensor_file = folder / f"{part}.safetensors"
    tensors = load_file(tensor_file) if tensor_file.exists() else {}
    return _decoded(json.loads((folder / f"{part}.json").read_text(encoding="ascii")), tensors)


def seed_random_state(seed: int, rank: int) -> None:
    """Seed the global generators, which only libraries and rewards draw from, for one rank."""
    streams = np.random.SeedSequence((seed, rank)).generate_state(3).tolist()
    random.seed(streams[0])
    np.random.seed(streams[1])  # noqa: NPY002
    torch.manual_seed(streams[2])


def random_state() -> dict[str, Any]:
    """Return the global generators of Python, numpy and torch, as plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries draw from it
    state = {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": _to_text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _to_text(torch.cuda.get_rng_state())
    return state


def restore_random_state(state: State) -> None:
    """Set the global generators to what `random_state` returned; a GPU's only if there is one."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_from_text(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_text(state["cuda"]))


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _encoded(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - any state
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else _tagged("float", repr(value))
    if kind in (list, tuple):
        items = [_encoded(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return items if kind is list else _tagged("tuple", items)
    if isinstance(value, Mapping):
        return _encoded_mapping(value, path, tensors)
    if isinstance(value, Tensor):
        return _tagged("tensor", _put(value, path, tensors))
    if kind is np.ndarray:
        return _tagged("array", _put(torch.from_numpy(value), path, tensors))
    raise TypeError(
        f"the state at {path} is a {kind.__module__}.{kind.__qualname__}: state_dict() returns "
        "tensors, arrays, dicts, lists, tuples, numbers, text and None only"
    )


def _encoded_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> object:
    pairs = {key: _encoded(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if all(type(key) is str for key in pairs) and _TAG not in pairs:
        return pairs
    return _tagged("dict", [[_encoded(key, path, tensors), item] for key, item in pairs.items()])


def _tagged(kind: str, value: object) -> dict[str, object]:
    return {_TAG: kind, _VALUE: value}


def _put(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    key = path if path not in tensors else f"{path}#{len(tensors)}"
    tensors[key] = tensor
    return key


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, each with memory of its own, as the format asks."""
    seen: set[int] = set()
    result = {}
    for key, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != flat.nbytes:
            flat = flat.clone()
        seen.add(flat.untyped_storage().data_ptr())
        result[key] = flat
    return result


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - any state
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decoded(item, tensors) for key, item in value.items()}
    kind, content = value[_TAG], value[_VALUE]
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(_decoded(content, tensors))
    return {_decoded(key, tensors): _decoded(item, tensors) for key, item in content}
