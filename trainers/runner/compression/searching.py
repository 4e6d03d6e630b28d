"""The searchers of a compression on one problem, each with a counter of its own.

PPO is the one of every run on numbers: `runner/stages/ppo_control.py` on `llmgym/Compression-v0`,
in the folder `search/` of the run. Every plan that it tries is in the log of evaluations, so that
a search that was killed begins again and passes the same plans in seconds.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import gymnasium
import numpy as np

from llmgym.compression.table import PlanTable
from llmgym.envs.compression import Compression
from trainers.compress.baselines import (
    NEEDS_SENSITIVITIES,
    SEARCHERS,
    Search,
    SearchResult,
    Subject,
    run_search,
)
from trainers.compress.database import Database
from trainers.compress.problem import ModelProblem
from trainers.compress.spaces import Space
from trainers.config.compression import SearcherName
from trainers.config.files import read
from trainers.errors import ConfigError
from trainers.run_dir.record import read_status
from trainers.runner.run import run

PPO_NAMES: Mapping[SearcherName, str] = {"ppo": "search", "ppo-cold": "search-cold"}
"""Folders of the searches by PPO, by searcher."""
EPISODES = 16
"""Plans of one iteration of PPO."""
EXTENSIONS = 8
"""Times that PPO is continued for the evaluations that repeated plans have left."""
STALE_ITERATIONS = 4
"""Iterations per new plan, above which a continuation is the last."""
BASELINE_NAMES: Mapping[SearcherName, str] = {
    "dp": "additive",
    "evolution-from-dp": "evolution from additive",
}
"""What searchers are called in `baselines.py`, where it is another name."""
PPO = {
    "run.kind": "control",
    "ppo.num_prompts": EPISODES,
    "ppo.samples_per_prompt": 1,
    "ppo.num_epochs": 6,
    "ppo.num_minibatches": 4,
    "ppo.clip_low": 0.2,
    "ppo.clip_high": 0.2,
    "ppo.learning_rate": 3e-3,
    "ppo.critic_learning_rate": 3e-3,
    "ppo.gamma": 1.0,
    "ppo.gae_lambda": 1.0,
    "ppo.kl_placement": "none",
    "ppo.entropy_coef": 0.01,
    "ppo.target_kl": 0.03,
    "ppo.value_clip": None,
    "eval.num_tasks": 0,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
    "log.wandb.enabled": False,
}
"""Of a search; the rest is as everywhere."""


class StoppedError(Exception):
    """Raised when the search was asked to stop, and has saved what it had."""


@final
class FixedBudget(gymnasium.Wrapper[np.ndarray, np.integer, np.ndarray, np.integer]):
    """Begins every plan under the same budget.

    Args:
        env: a `Compression`.
        shares: of the dense cost, by kind.
    """

    def __init__(self, env: Compression, shares: Mapping[str, float]) -> None:
        super().__init__(env)
        self._shares = dict(shares)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a plan."""
        return self.env.reset(seed=seed, options={**(options or {}), "budget": self._shares})


@final
@dataclass(frozen=True, slots=True)
class SearchEnvs:
    """Makes the environments of one search, all on one problem.

    Attributes:
        problem: what is decided on.
        shares: the budget, of the dense cost by kind.
    """

    problem: ModelProblem
    shares: Mapping[str, float]

    def __call__(self) -> FixedBudget:
        """Return a new environment."""
        most = max(self.shares.values())
        env = Compression(self.problem, budgets=tuple(self.shares), budget_range=(most, most))
        return FixedBudget(env, self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """What is searched, and under which budget.

    Attributes:
        database: evaluates.
        space: the decisions.
        table: of both.
        shares: the budget, of the dense cost by kind.
        paid: evaluations of the sensitivities.
        limit: evaluations of each searcher.
        seed: of its randomness.
        influences: 1 - cos of each layer.
    """

    database: Database
    space: Space
    table: PlanTable
    shares: Mapping[str, float]
    paid: int
    limit: int
    seed: int
    influences: list[float]

    @property
    def budget(self) -> np.ndarray:
        """[M] in the units of the costs, infinite where there is none."""
        shares = [self.shares.get(name, np.inf) for name in self.table.cost_names]
        return np.array(shares) * np.where(self.table.dense > 0, self.table.dense, 1.0)

    @property
    def subject(self) -> Subject:
        """What the baselines search."""
        depth = len(self.table.global_actions)
        size = 1 if depth else 2
        layers = [
            list(range(at, at + size)) for at in range(depth, len(self.table.decisions), size)
        ]
        return Subject(
            table=self.table,
            evaluate=lambda plans: np.array(
                self.database.evaluate([self.space.plan(plan) for plan in plans])
            ),
            layers=layers,
            influences=self.influences,
        )


def searched(
    name: SearcherName, task: SearchTask, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run a searcher; return its best plan, that plan's KL on selection, and what it paid for.

    Args:
        name: of the searcher.
        task: what is searched.
        folder: of the run.
        say: told how far PPO is.

    Raises:
        StoppedError: it was asked to stop.
    """
    if name in PPO_NAMES:
        return trained(task, folder / PPO_NAMES[name], say, seeded=name == "ppo")
    label = BASELINE_NAMES.get(name, name)
    paid = task.paid if label in NEEDS_SENSITIVITIES else 0
    search = Search(task.subject, task.budget, limit=task.limit, paid=paid, seed=task.seed)
    return outcome(run_search(SEARCHERS[label], search))


def outcome(result: SearchResult) -> dict[str, Any]:
    """Return a result as JSON has it."""
    return {
        "plan": None if result.plan is None else list(map(int, result.plan)),
        "kl": None if result.plan is None else result.kl,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
    }


def trained(
    task: SearchTask, folder: Path, say: Callable[[str], None], *, seeded: bool
) -> dict[str, Any]:
    """Let PPO try plans until its evaluations are spent, or it finds no new one.

    Args:
        task: what is searched.
        folder: of the search; what is there is written anew, its evaluations are in the log.
        say: told how far it is.
        seeded: whether it begins at the best additive plan, and is paid for being better.

    Raises:
        StoppedError: it was asked to stop.
        ConfigError: the evaluations do not suffice for an iteration.
    """
    began = time.perf_counter()
    problem = ModelProblem(task.database, task.space, task.table, seeds=seeded)
    seed, before = problem.seed(task.budget), None
    if seed is not None:
        before = float(problem.evaluate(seed[None])[0])
    check_evaluations(task.limit, task.paid)
    shutil.rmtree(folder, ignore_errors=True)
    envs, iterations = SearchEnvs(problem, task.shares), 0
    for number in range(1 + EXTENSIONS):
        spent = task.paid + len(problem.tried)
        more = (task.limit - spent) // EPISODES
        if not more:
            break
        iterations += more
        _improve(task, folder, envs, iterations, resume=number > 0)
        fresh = task.paid + len(problem.tried) - spent
        say(
            f"{folder.name}: {iterations} iterations of PPO, {spent + fresh} of {task.limit} "
            f"evaluations, KL {_best(problem, task)[1]:.4f}"
            f"{'' if before is None else f', of its seed {before:.4f}'}"
        )
        if STALE_ITERATIONS * fresh < more:
            break
    plan, kl = _best(problem, task)
    return {
        "plan": list(map(int, plan)),
        "kl": kl,
        "evaluations": task.paid + len(problem.tried),
        "seconds": time.perf_counter() - began,
        "seed_kl": before,
        "iterations": iterations,
    }


def _improve(
    task: SearchTask, folder: Path, envs: SearchEnvs, iterations: int, *, resume: bool
) -> None:
    changes = {
        "run.dir": str(folder.parent),
        "run.name": folder.name,
        "run.seed": task.seed,
        "ppo.num_iterations": iterations,
        "ppo.num_steps": len(task.table.decisions),
    }
    run(read([], {**PPO, **changes}), env=envs, resume=resume, loggers=[])
    if read_status(folder).get("status") == "interrupted":
        raise StoppedError


def _best(problem: ModelProblem, task: SearchTask) -> tuple[np.ndarray, float]:
    best = problem.best(task.budget)
    assert best is not None, "masks keep every plan within the budget"
    return best


def check_evaluations(limit: int, paid: int) -> None:
    """Refuse a limit that leaves PPO no iteration.

    Args:
        limit: evaluations it may pay for.
        paid: those of the sensitivities.

    Raises:
        ConfigError: it is too low.
    """
    least = paid + 1 + EPISODES
    if limit < least:
        raise ConfigError(
            f"--evaluations {limit} is too few: the sensitivities of this model take {paid}, and "
            f"one iteration of PPO {EPISODES}. Set --evaluations {least} or more."
        )
