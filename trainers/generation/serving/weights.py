"""The weights of a policy as a weights file, one tensor at a time, and the names in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainers.generation.serving.protocol import MAGIC, write_header


def write_weights(
    path: Path | None,
    weights: Iterable[tuple[str, Tensor]],
    *,
    names: Mapping[str, str],
    dtype: torch.dtype,
    version: int,
) -> None:
    """Write a weights file; only one tensor is held at any time.

    Args:
        path: the file; None: take each tensor and write none, as ranks do that only help to gather.
        weights: (name, tensor) one at a time.
        names: for each name, the one in a model's own files; what is not in it is left out.
        dtype: written as.
        version: of the policy.
    """
    if path is None:
        for _ in weights:
            pass
        return
    lacking, count = set(names), 0
    with path.open("wb") as file:
        file.write(MAGIC)
        for name, tensor in weights:
            if name not in names:
                continue
            content = tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8)
            header = {
                "name": names[name],
                "dtype": str(dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "bytes": content.numel(),
            }
            write_header(file, header)
            file.write(content.numpy().data)
            lacking.remove(name)
            count += 1
        assert not lacking, f"no weights came for {min(lacking)}"
        write_header(file, {"count": count, "version": version})
