"""`llmgym/Compression-v0`: decide how much of each part of a model stays, within a budget.

An episode is one plan: a decision per step, an action per size and bits. The budget is drawn at
each reset and is kept by masks, `info["action_mask"]`: an action that is not allowed is replaced by
the nearest that is, and `info["clamped"]` says so. The reward comes at the end:

    R = -log(eps + KL(plan)) + log(eps + KL(seed plan of the same budget))

0 is as good as the seed. Shaping adds phi(s') - phi(s) with phi(s) = -(sum of predicted KL so far)
and phi(end) = 0, so that no order of plans changes (Ng et al. 1999).
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym.compression.budget import BudgetMask, nearest
from llmgym.compression.problem import Problem, TableProblem, read_problem
from llmgym.errors import EpisodeOverError, TaskSourceError

EPS = 1e-3
"""Nats per token below which a KL is as good as none."""
PRIOR = 2.0
"""What the seed's action gains in its logit."""
GRID = 13
"""Budgets between the ends of their range."""
BOUND = 10.0
"""Of an observation."""
MOVING = ("step", "room", "least_rest", "most_rest", "last_action", "action_before", "predicted_kl")
"""Observations that move, besides the budgets."""


@final
class Compression(gymnasium.Env[np.ndarray, np.integer]):
    """Decides on the parts of one model, in turn.

    Args:
        problem: what is decided on.
        budgets: names of the costs that are limited.
        budget_range: the least and the largest budget that is drawn, as shares of the dense cost.
        shaping: whether predictions are paid on the way.
        prior: whether the seed plan is offered as `info["action_prior"]`.

    Raises:
        TaskSourceError: no plan is within the largest budget, or a cost is not known.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        problem: Problem,
        *,
        budgets: tuple[str, ...] = ("bytes",),
        budget_range: tuple[float, float] = (0.35, 0.95),
        shaping: bool = True,
        prior: bool = True,
    ) -> None:
        self.problem = problem
        self._table = problem.table
        self._mask = BudgetMask(self._table, tuple(budgets))
        self._kinds = tuple(budgets)
        self._shaping, self._prior = shaping, prior
        self._dense = self._table.dense[self._mask.columns]
        self._grid = self._budgets(*budget_range)
        targets = tuple(f"budget_{kind}" for kind in self._table.cost_names)
        self.observation_names = (*self._table.feature_names, *MOVING, *targets)
        shape = (len(self.observation_names),)
        self.observation_space = Box(-BOUND, BOUND, shape, np.float32)
        self.action_space = Discrete(len(self._table.action_names))
        self._choices: list[int] = []
        self._budget = self._grid[-1]
        self._seed: np.ndarray | None = None
        self._over = True
        self._seeds: dict[bytes, np.ndarray | None] = {}
        self._seed_kls: dict[bytes, float] = {}

    def _budgets(self, low: float, high: float) -> np.ndarray:
        """Return the budgets [N, m] that are drawn from: those that some plan is within."""
        if not 0 < low <= high:
            raise TaskSourceError(f"budget_range must be 0 < low <= high, got {low} and {high}")
        shares = np.linspace(low, high, GRID if low < high else 1)
        within = [share * self._dense for share in shares]
        within = [budget for budget in within if self._mask.feasible(budget)]
        if not within:
            raise TaskSourceError(self._refusal(f"{high:g}"))
        return np.array(within)

    def _refusal(self, share: str) -> str:
        least = (self._mask.least / self._dense).min(0)
        possible = ", ".join(
            f"{kind} {value:.3f}" for kind, value in zip(self._kinds, least, strict=True)
        )
        return (
            f"no plan of {self._table.name} meets a budget of {share} of the dense model. The "
            f"least that a plan can have: {possible}. Give a larger budget."
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a plan.

        Args:
            seed: of the budget.
            options: {"budget": share of the dense cost, or a share per cost} fixes it.

        Raises:
            TaskSourceError: no plan meets the budget.
        """
        super().reset(seed=seed)
        share = (options or {}).get("budget")
        if share is None:
            self._budget = self._grid[int(self.np_random.integers(len(self._grid)))]
        else:
            self._budget = self._fixed(share)
        self._choices, self._over = [], False
        key = self._budget.tobytes()
        if key not in self._seeds:
            self._seeds[key] = self.problem.seed(self._limits())
        self._seed = self._seeds[key]
        return self._obs(), self._info()

    def _fixed(self, share: float | Mapping[str, float]) -> np.ndarray:
        shares = share if isinstance(share, Mapping) else dict.fromkeys(self._kinds, share)
        if set(shares) != set(self._kinds):
            raise TaskSourceError(
                f"options budget must name {', '.join(self._kinds)}, got {shares}"
            )
        budget = np.array([float(shares[kind]) for kind in self._kinds]) * self._dense
        if not self._mask.feasible(budget):
            raise TaskSourceError(self._refusal(str(share)))
        return budget

    def _limits(self) -> np.ndarray:
        """Return the budget of every cost [M], infinite where there is none."""
        limits = np.full(len(self._table.cost_names), np.inf)
        limits[self._mask.columns] = self._budget
        return limits

    def step(
        self, action: np.integer | int
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide on one part.

        Raises:
            EpisodeOverError: the plan is complete.
        """
        if self._over:
            raise EpisodeOverError("the plan is complete: reset before another step")
        allowed = self._mask.allowed(np.array(self._choices, dtype=np.int64), self._budget)
        chosen = nearest(int(action), allowed)
        before = self._potential()
        self._choices.append(chosen)
        self._over = len(self._choices) == len(self._table.decisions)
        reward = 0.0
        if self._shaping:
            reward += (0.0 if self._over else self._potential()) - before
        if self._over:
            reward += self._quality()
        return self._obs(), reward, self._over, False, self._info(clamped=chosen != int(action))

    def _potential(self) -> float:
        """Return minus the predicted KL of what was decided so far."""
        steps = np.arange(len(self._choices))
        if len(steps) <= len(self._table.global_actions):
            return 0.0
        context = self._table.context(np.array(self._choices))
        return -float(self._table.predicted[context, steps, self._choices].sum())

    def _quality(self) -> float:
        """Return the reward of a complete plan, before shaping."""
        kl = float(self.problem.evaluate(np.array([self._choices]))[0])
        return float(-np.log(EPS + kl) + self._seed_term())

    def _seed_term(self) -> float:
        """Return log(eps + KL) of the seed plan; 0 without one."""
        if self._seed is None:
            return 0.0
        key = self._budget.tobytes()
        if key not in self._seed_kls:
            self._seed_kls[key] = float(self.problem.evaluate(self._seed[None])[0])
        return float(np.log(EPS + self._seed_kls[key]))

    def _obs(self) -> np.ndarray:
        step = len(self._choices)
        choices = np.array(self._choices, dtype=np.int64)
        features = self._table.features[min(step, len(self._table.decisions) - 1)]
        least, most = self._mask.remaining(choices)
        room = 1 - self._mask.spent(choices) / self._budget
        actions = len(self._table.action_names)
        last = [(choice + 1) / actions for choice in [-1, -1, *self._choices][-2:]]
        moving = [
            step / len(self._table.decisions),
            float(room.min()),
            float((least / self._budget).max()),
            float((most / self._budget).max()),
            last[1],
            last[0],
            float(np.log1p(max(0.0, -self._potential()))),
        ]
        shares = self._limits() / self._table.dense
        targets = np.where(np.isfinite(shares), shares, 0.0)
        obs = np.concatenate([features, moving, targets])
        return np.clip(obs, -BOUND, BOUND).astype(np.float32)

    def _info(self, *, clamped: bool = False) -> dict[str, Any]:
        """Return mask and prior [K] of the next decision; after the last one all is allowed."""
        step, actions = len(self._choices), len(self._table.action_names)
        info: dict[str, Any] = {"clamped": clamped, "action_mask": np.ones(actions, dtype=bool)}
        prior = np.zeros(actions, dtype=np.float32)
        if not self._over:
            choices = np.array(self._choices, dtype=np.int64)
            info["action_mask"] = self._mask.allowed(choices, self._budget)
            if self._prior and self._seed is not None:
                prior[self._seed[step]] = PRIOR
        else:
            plan = np.array(self._choices)
            info["plan"] = plan
            info["cost"] = self._table.cost(plan)
        return info | {"action_prior": prior}


def make(
    *,
    problem: str | None = None,
    budgets: tuple[str, ...] | list[str] = ("bytes",),
    budget_range: tuple[float, float] | list[float] = (0.35, 0.95),
    shaping: bool = True,
    prior: bool = True,
) -> Compression:
    """Build the environment of a problem file.

    Args:
        problem: a file that `write_problem` of `llmgym.compression.problem` wrote; None for the one
            in the package, of a model with 0.9 M parameters.
        budgets: names of the costs that are limited.
        budget_range: the least and the largest budget that is drawn, as shares of the dense cost.
        shaping: whether predictions are paid on the way; no order of plans depends on it.
        prior: whether the best additive plan is offered as `info["action_prior"]`.

    Raises:
        TaskSourceError: the file is no problem, or no plan meets the budgets.
    """
    path = problem or str(files("llmgym.compression") / "quickstart.npz")
    low, high = budget_range
    return Compression(
        TableProblem(read_problem(path)),
        budgets=tuple(budgets),
        budget_range=(low, high),
        shaping=shaping,
        prior=prior,
    )
