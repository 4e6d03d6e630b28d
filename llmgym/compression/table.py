"""The table of a compression problem: decisions, what each costs, and predicted quality.

A plan is one action per decision, in order. The first decisions may be global (one size for all
layers): they cost nothing themselves and select the costs of the others, a context. Shapes: U
decisions, K actions, M kinds of cost, C contexts, F features.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from llmgym.errors import TaskSourceError


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PlanTable:
    """What is known of a problem before a plan is tried.

    Attributes:
        name: of the problem.
        decisions: [U] names.
        global_actions: numbers of actions of the first decisions, which select a context.
        action_names: [K] names.
        cost_names: [M], such as latency and bytes.
        costs: [C, U, K, M] of each action, infinite where there is no such action.
        constant: [M] what every plan costs besides.
        dense: [M] what the plan costs that changes nothing.
        drops: [U, K] True where an action removes all of what it decides on.
        predicted: [C, U, K] part of each action in the additive prediction of the KL, in nats.
        feature_names: [F].
        features: [U, F] of each decision, about in [-1, 1].
    """

    name: str
    decisions: tuple[str, ...]
    global_actions: tuple[int, ...]
    action_names: tuple[str, ...]
    cost_names: tuple[str, ...]
    costs: np.ndarray
    constant: np.ndarray
    dense: np.ndarray
    drops: np.ndarray
    predicted: np.ndarray
    feature_names: tuple[str, ...]
    features: np.ndarray

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together.

        Raises:
            TaskSourceError: names the array.
        """
        contexts = int(np.prod(self.global_actions, dtype=np.int64))
        steps, actions = len(self.decisions), len(self.action_names)
        kinds = len(self.cost_names)
        expected = {
            "costs": (contexts, steps, actions, kinds),
            "constant": (kinds,),
            "dense": (kinds,),
            "drops": (steps, actions),
            "predicted": (contexts, steps, actions),
            "features": (steps, len(self.feature_names)),
        }
        for name, shape in expected.items():
            actual = getattr(self, name).shape
            if actual != shape:
                raise TaskSourceError(f"{name} of {self.name} must be {shape}, got {actual}")

    @property
    def available(self) -> np.ndarray:
        """[C, U, K] True where there is such an action."""
        return np.asarray(np.isfinite(self.costs).all(-1))

    def context(self, choices: np.ndarray) -> int:
        """Return the context that the global decisions of a plan [U] select."""
        number = 0
        for size, choice in zip(self.global_actions, choices, strict=False):
            number = number * size + int(choice)
        return number

    def cost(self, choices: np.ndarray) -> np.ndarray:
        """Return what a plan [U] costs, [M]."""
        steps = np.arange(len(self.decisions))
        return self.constant + self.costs[self.context(choices), steps, choices].sum(0)

    def prediction(self, choices: np.ndarray) -> float:
        """Return the additive prediction of the KL of a plan [U], in nats."""
        steps = np.arange(len(self.decisions))
        return float(self.predicted[self.context(choices), steps, choices].sum())
