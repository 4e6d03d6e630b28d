"""Compare PPO with every baseline on one model's problem, under budgets of bytes.

Run: python -m scripts.compression.baselines MODEL EVALUATIONS SHARE...

MODEL is the folder of a model that solves llmgym/Arithmetic-v0, as `llmgym train quickstart` makes.
Every searcher has the same number of evaluations; those of sensitivities count.
"""

import sys
import tempfile
import time

import gymnasium
import numpy as np

from llmgym.envs.compression import Compression
from trainers.compress.baselines import (
    NEEDS_SENSITIVITIES,
    SEARCHERS,
    Search,
    Subject,
    run_search,
)
from trainers.compress.costs import CostModel
from trainers.compress.database import Database
from trainers.compress.problem import ModelProblem, table_of
from trainers.compress.spaces import PerLayerSpace
from trainers.compress.token_rows import Splits, TokenRows, pad_rows
from trainers.compress.variants import MAGNITUDE, OURS, WANDA
from trainers.config.files import read
from trainers.models.chat import ChatFormat
from trainers.models.loading import load_causal_lm, load_chat, load_tokenizer
from trainers.runner.run import run
from trainers.supervised.sft_data import from_env, tokenize_demonstrations

ENV = "llmgym/Arithmetic-v0"
EPISODES = 16
PPO = {
    "run.kind": "control",
    "ppo.num_prompts": EPISODES,
    "ppo.samples_per_prompt": 1,
    "ppo.num_epochs": 6,
    "ppo.num_minibatches": 4,
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
    "log.wandb.enabled": False,
}


def rows_of(chat: ChatFormat, split: str, indices: range) -> TokenRows:
    """Return sums with their answers; the answers count."""
    env = gymnasium.make(ENV, split=split, disable_env_checker=True)
    shown = from_env(env, indices)
    examples, _ = tokenize_demonstrations(chat, shown, longest=64, too_long="raise")
    return pad_rows(
        [[*example.prompt, *example.response] for example in examples],
        prompts=[len(example.prompt) for example in examples],
        end_ids=chat.eos_token_ids,
    )


def database_of(model: str) -> Database:
    """Return the database of a model on its task: calibration, selection and report by task."""
    config = read([], {"model.path": model})
    chat = load_chat(config, load_tokenizer(config), env=ENV)
    splits = Splits(
        calibration=rows_of(chat, "train", range(1000)),
        selection=rows_of(chat, "train", range(1000, 1500)),
        report=rows_of(chat, "test", range(1000)),
    )
    return Database(load_causal_lm(model), splits)


def trained(problem: ModelProblem, share: float, iterations: int, *, seeded: bool) -> None:
    """Let PPO try plans of a problem under one budget."""
    steps = len(problem.table.decisions)
    with tempfile.TemporaryDirectory() as folder:
        changes = {"run.dir": folder, "ppo.num_iterations": iterations, "ppo.num_steps": steps}
        run(
            read([], {**PPO, **changes}),
            env=lambda: Compression(
                problem, budgets=("bytes",), budget_range=(share, share), prior=seeded
            ),
            loggers=[],
        )


def main(model: str, evaluations: str, *shares: str) -> None:
    """Print a row per searcher and budget: KL on selection and on report, evaluations, seconds."""
    limit, database = int(evaluations), database_of(model)
    space = PerLayerSpace(database.variants.geometry)
    table = table_of(database, space, CostModel(database.variants.geometry), "arithmetic")
    paid, influences = database.evaluations, database.block_influences()
    layers = [[2 * layer, 2 * layer + 1] for layer in range(len(influences))]
    print(f"{paid} evaluations of sensitivities")
    rows = [("uniform, magnitude", "uniform", MAGNITUDE), ("uniform, Wanda", "uniform", WANDA)]
    rows += [(name, name, OURS) for name in SEARCHERS]
    for share in map(float, shares):
        budget = np.where(np.array(table.cost_names) == "bytes", share * table.dense, np.inf)
        for label, name, method in rows:
            subject = Subject(
                table=table,
                evaluate=lambda plans, method=method: np.array(
                    database.evaluate([space.plan(plan) for plan in plans], method=method)
                ),
                layers=layers,
                influences=influences,
            )
            before = paid if name in NEEDS_SENSITIVITIES else 0
            result = run_search(SEARCHERS[name], Search(subject, budget, limit=limit, paid=before))
            report = np.nan
            if result.plan is not None:
                report = database.report_kl(space.plan(result.plan.tolist()), method=method)
            print(f"| {share} | {label} | {result.kl:.4f} | {report:.4f} | {result.evaluations} |")
        problem = ModelProblem(database, space, table)
        trained(problem, share, (limit - paid) // EPISODES, seeded=True)
        best = problem.best(budget)
        assert best is not None, "the seed plan is within the budget"
        report = database.report_kl(space.plan(best[0].tolist()))
        count = paid + len(problem.tried)
        print(f"| {share} | PPO, seeded | {best[1]:.4f} | {report:.4f} | {count} |", flush=True)
    print(f"{time.process_time():.0f} s of CPU")


if __name__ == "__main__":
    main(*sys.argv[1:])
