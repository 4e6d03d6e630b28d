"""The options of every verb that has no settings of its own, read by tyro."""

from collections.abc import Sequence
from dataclasses import replace
from types import NoneType
from typing import Annotated, Any, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

RunArgument = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")]
"""A run or a model that is given by place; the newest run without one."""

_registry = ConstructorRegistry()


def parse_options(kind: Any, argv: Sequence[str], verb: str) -> Any:  # noqa: ANN401
    """Return the options `kind`, a dataclass or a union of them, that `argv` gives to a verb."""
    return tyro.cli(kind, args=argv, prog=f"llmgym {verb}", registry=_registry)


@_registry.primitive_rule
def _optional(
    info: PrimitiveTypeInfo,
) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """Read and show `T | None` as `T`: an option that is left out is None."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if NoneType not in get_args(info.type) or len(kinds) != 1:
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if isinstance(inner, UnsupportedTypeAnnotationError):
        return inner
    return replace(
        inner,
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: (
            ["none"] if value is None else inner.str_from_instance(value)
        ),
    )
