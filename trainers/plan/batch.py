"""The batch arithmetic of an iteration: from prompts to backward passes. No torch."""

import math
from dataclasses import dataclass

from trainers.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """How many rows of which width there are, with prompts and responses at their limits.

    Attributes:
        rows: episodes of an iteration on all ranks; for numeric environments, steps.
        width: tokens of a row; 1 for a step.
        ranks: processes that share the rows.
    """

    rows: int
    width: int
    ranks: int
    minibatches: int
    epochs: int
    micro_batch_tokens: int

    @classmethod
    def of(cls, config: Config, ranks: int = 1) -> "BatchShape":
        """Read the settings."""
        ppo, generation = config.ppo, config.generation
        is_control, environments = config.is_control, ppo.num_prompts * ppo.group_size
        return cls(
            rows=environments * ppo.num_steps if is_control else ppo.num_episodes,
            width=1 if is_control else generation.max_prompt_tokens + generation.max_new_tokens,
            ranks=ranks,
            minibatches=ppo.num_minibatches,
            epochs=ppo.num_epochs,
            micro_batch_tokens=config.backend.micro_batch_tokens,
        )

    @property
    def rank_rows(self) -> int:
        """Rows of a rank."""
        return math.ceil(self.rows / self.ranks)

    @property
    def minibatch_rows(self) -> int:
        """Rows of a rank in a minibatch; on several ranks, on average."""
        return math.ceil(self.rank_rows / self.minibatches)

    @property
    def micro_rows(self) -> int:
        """Rows of a forward and backward pass: as many as the token budget holds, at least one."""
        return min(max(self.micro_batch_tokens // self.width, 1), self.minibatch_rows)

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of an optimizer step."""
        return math.ceil(self.minibatch_rows / self.micro_rows)

    @property
    def scored_rows(self) -> int:
        """Rows of a pass without gradients."""
        return min(max(self.micro_batch_tokens // self.width, 1), self.rank_rows)

    @property
    def scored_batches(self) -> int:
        """Passes without gradients over all rows of a rank."""
        return math.ceil(self.rank_rows / self.scored_rows)

    @property
    def steps(self) -> int:
        """Optimizer steps of an iteration."""
        return self.epochs * self.minibatches


def spelled(config: Config, batch: BatchShape) -> list[str]:
    """Return the arithmetic in words, a line a step of it."""
    ppo, generation = config.ppo, config.generation
    if config.is_control:
        count, most = ppo.num_prompts * ppo.group_size, "" if ppo.has_critic else " at most"
        lines = [f"{count} environments x {ppo.num_steps} steps = {batch.rows} rows{most}"]
    else:
        lines = [
            f"{ppo.num_prompts} prompts x {ppo.samples_per_prompt} responses = {batch.rows} "
            "episodes an iteration",
            f"{generation.max_prompt_tokens} prompt + {generation.max_new_tokens} response = "
            f"{batch.width} tokens a row at most",
        ]
    if batch.ranks > 1:
        share = batch.rows / batch.ranks
        lines.append(f"{batch.rows} rows / {batch.ranks} ranks = {share:g} rows a rank")
    each = batch.rows / batch.minibatches
    lines.append(
        f"{batch.rows} rows / {batch.minibatches} minibatches = {each:g} rows an optimizer step"
    )
    lines.append(
        f"{batch.minibatches} minibatches x {batch.epochs} epochs = {batch.steps} optimizer steps "
        "an iteration"
    )
    budget = "fit" if batch.micro_batch_tokens >= batch.width else "do not fit, so one row goes in"
    lines.append(
        f"{batch.micro_rows} rows x {batch.width} tokens {budget} micro_batch_tokens "
        f"{batch.micro_batch_tokens}: {batch.micro_batches} micro-batches a step"
        + (" of a rank" if batch.ranks > 1 else "")
    )
    lines.append(
        f"{ppo.num_iterations} iterations: {ppo.num_iterations * batch.rows:,} "
        f"{'steps' if config.is_control else 'episodes'}, "
        f"{ppo.num_iterations * batch.steps:,} optimizer steps"
    )
    return lines
