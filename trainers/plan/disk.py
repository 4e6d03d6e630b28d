"""What a run folder takes of the disk, by part, from the settings alone."""

import math

from trainers.config import Config
from trainers.plan.state import checkpoint_bytes, export_bytes

BYTES_PER_TOKEN = 5
"""Bytes of text of a token in samples.jsonl, at most on average."""

METRICS_BYTES = 8_000
"""Of one iteration in metrics.jsonl and the offline W&B run."""


def disk_of(
    config: Config, parameters: dict[str, int], learned: dict[str, int] | None = None
) -> dict[str, int]:
    """Return the bytes of a run folder by part, at most; one checkpoint more while it is written.

    Args:
        config: of the run.
        parameters: of each model by its role.
        learned: how many of them learn; None: all.
    """
    saved = {role: parameters.get(role, 0) for role in ("policy", "critic")} | (learned or {})
    ppo, generation, log = config.ppo, config.generation, config.log
    policy, critic = parameters["policy"], parameters.get("critic", 0)
    sizes: dict[str, int] = {}
    if config.sft.num_epochs:
        saves = min(config.sft.num_epochs, config.checkpoint.keep_last) + 1
        sizes[f"checkpoints/sft_*, {saves}"] = saves * checkpoint_bytes(saved["policy"])
    if config.model.path is None or config.sft.num_epochs:
        sizes["base"] = 0 if config.is_control else export_bytes(policy)
    sizes["model"] = export_bytes(policy)
    if ppo.num_iterations:
        every = config.checkpoint.every or ppo.num_iterations
        saves = min(math.ceil(ppo.num_iterations / every), config.checkpoint.keep_last) + 1
        sizes[f"checkpoints/ppo_*, {saves}"] = saves * checkpoint_bytes(sum(saved.values()))
        sizes["critic"] = export_bytes(critic or policy)
        if config.eval.num_tasks:
            sizes["best"] = export_bytes(policy)
        text = BYTES_PER_TOKEN * (generation.max_prompt_tokens + generation.max_new_tokens) + 500
        shows = ppo.num_iterations // log.samples_every if log.samples_every else 0
        sizes["samples"] = 0 if config.is_control else 2 * shows * log.sample_rows * text
        sizes["metrics, W&B"] = METRICS_BYTES * ppo.num_iterations
    return {part: size for part, size in sizes.items() if size}
