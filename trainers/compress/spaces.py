"""From choices to plans: what the decisions of a search are, and the sizes that follow.

`UniformSpace` has one MLP width and one number of heads for all layers, then keeps or drops each
layer: its plans are plain folders. `PerLayerSpace` decides on every unit. Actions are (level, bits)
in one number; an action whose size another has already is left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from trainers.compress.units import (
    DENSE_BITS,
    KINDS,
    LEVELS,
    Choice,
    Geometry,
    SizePlan,
    UnitKind,
)


class Space(ABC):
    """What is decided, in order; every decision has the same number of actions."""

    decisions: tuple[str, ...]
    """Names of the decisions."""
    global_actions: tuple[int, ...]
    """Numbers of actions of the first decisions, which are of all layers."""
    action_names: tuple[str, ...]
    """Names of the actions."""

    @abstractmethod
    def options(self, decision: int, context: Sequence[int]) -> list[tuple[Choice, ...] | None]:
        """Return what each action makes of the units of a decision; None: no such action.

        Args:
            decision: its number, behind the global ones.
            context: actions of the global decisions.
        """

    @abstractmethod
    def plan(self, choices: Sequence[int]) -> SizePlan:
        """Return the plan of one action per decision."""


def distinct(geometry: Geometry, kind: UnitKind, levels: Sequence[float]) -> list[int | None]:
    """Return the size of each level; None where a level before it has the same."""
    sizes = [geometry.snapped(kind, level) for level in levels]
    return [None if size in sizes[:number] else size for number, size in enumerate(sizes)]


@final
class PerLayerSpace(Space):
    """A level and bits for every unit.

    Args:
        geometry: of the model.
        levels: shares that may stay, ascending.
        bits: of weights, `DENSE_BITS` first.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        levels: Sequence[float] = LEVELS,
        bits: Sequence[int] = (DENSE_BITS,),
    ) -> None:
        self._geometry = geometry
        self._levels, self._bits = tuple(levels), tuple(bits)
        self.decisions = tuple(f"layer {unit.layer} {unit.kind}" for unit in geometry.units)
        self.global_actions = ()
        self.action_names = tuple(f"{level:g} {b} bits" for level in levels for b in bits)

    def options(self, decision: int, context: Sequence[int]) -> list[tuple[Choice, ...] | None]:
        """Return the choices of each action for one unit; a dropped one has no bits."""
        kind = self._geometry.units[decision].kind
        return [
            None if size is None or (not size and bits != DENSE_BITS) else (Choice(size, bits),)
            for size in distinct(self._geometry, kind, self._levels)
            for bits in self._bits
        ]

    def plan(self, choices: Sequence[int]) -> SizePlan:
        """Return the plan of one action per unit."""
        made: list[Choice] = []
        for decision, action in enumerate(choices):
            options = self.options(decision, ())[int(action)]
            assert options is not None, "no such action"
            made += options
        return SizePlan(tuple(made))


@final
class UniformSpace(Space):
    """One width and one number of heads, then {drop, keep} x bits for every layer.

    Args:
        geometry: of the model.
        levels: shares that may stay, ascending; 0 is left out of the global decisions.
        bits: of weights, `DENSE_BITS` first.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        levels: Sequence[float] = LEVELS,
        bits: Sequence[int] = (DENSE_BITS,),
    ) -> None:
        self._geometry = geometry
        self._bits = tuple(bits)
        self._sizes = {
            kind: [size for size in geometry.sizes(kind, levels) if size] for kind in KINDS
        }
        self.global_actions = tuple(len(self._sizes[kind]) for kind in KINDS)
        layers = tuple(f"layer {layer}" for layer in range(geometry.num_layers))
        self.decisions = ("heads of all layers", "width of all layers", *layers)
        count = max(*self.global_actions, 1 + len(self._bits))
        kept = [f"keep {b} bits" for b in bits]
        self.action_names = tuple(
            f"size {number} or {name}" if number < 1 + len(bits) else f"size {number}"
            for number, name in zip(range(count), ["drop", *kept, *[""] * count], strict=False)
        )

    def options(self, decision: int, context: Sequence[int]) -> list[tuple[Choice, ...] | None]:
        """Return the choices (attention, MLP) of each action for one layer."""
        sizes = [self._sizes[kind][action] for kind, action in zip(KINDS, context, strict=True)]
        kept = [tuple(Choice(size, bits) for size in sizes) for bits in self._bits]
        options: list[tuple[Choice, ...] | None] = [(Choice(0), Choice(0)), *kept]
        return options + [None] * (len(self.action_names) - len(options))

    def plan(self, choices: Sequence[int]) -> SizePlan:
        """Return the plan of two sizes and one action per layer."""
        made: list[Choice] = []
        for layer, action in enumerate(choices[2:]):
            options = self.options(layer, choices[:2])[int(action)]
            assert options is not None, "no such action"
            made += options
        return SizePlan(tuple(made))
