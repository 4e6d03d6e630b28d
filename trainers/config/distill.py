"""The settings of distillation: a student that learns what a teacher makes of its tokens."""

from typing import Literal

from pydantic.dataclasses import dataclass

from trainers.config.ppo import RULES, Count, NonNegative, Positive, PPOConfig, Share
from trainers.errors import ConfigError


@dataclass(config=RULES, frozen=True, kw_only=True)
class DistillConfig:
    """On-policy distillation, and what it is compared with; docs/guides/distill.md has the maths.

    Iterations, prompts, minibatches, rates and the stop at `target_kl` are those of `ppo`.
    """

    teacher: str | None = None
    """A Hugging Face folder or hub id of the student's vocabulary, which does not learn; null: no
    distillation."""
    method: Literal["ppo", "gkd", "sft_kd"] = "ppo"
    """`ppo`: the student's tokens, each rewarded with log teacher - log student, by the clipped
    surrogate. `gkd`: the student's tokens, by the gradient of a Jensen-Shannon divergence.
    `sft_kd`: the teacher's tokens, by the gradient of KL(teacher || student)."""
    coef: NonNegative = 1.0
    """`ppo`: weight of the teacher's advantage, in nats, added to that of `ppo.advantage`."""
    clip: Positive | None = 10.0
    """`ppo`: log-ratios are clipped to +- this many nats, in the reward and in its mean alike;
    null: off."""
    beta: Share = 0.5
    """`gkd`: the teacher's share of the mixture; 0: KL(teacher || student), 1: KL(student ||
    teacher)."""
    max_tokens: Count | None = None
    """Response tokens, over all ranks, at which the run ends after an iteration; null:
    `ppo.num_iterations` alone."""
    max_minutes: Positive | None = None
    """Minutes of training, those before a resume included, at which the run ends after an
    iteration; null: `ppo.num_iterations` alone."""

    @property
    def is_direct(self) -> bool:
        """True where the gradient of a divergence is followed, and nothing is rewarded."""
        return self.teacher is not None and self.method != "ppo"


def check_distill(distill: DistillConfig, ppo: PPOConfig) -> None:
    """Refuse settings of PPO that a teacher leaves nothing to do for.

    Raises:
        ConfigError: says which.
    """
    if distill.teacher is None:
        if ppo.advantage == "teacher":
            raise ConfigError(
                "ppo.advantage teacher compares with a teacher, and distill.teacher is not set. "
                "Set distill.teacher to a model folder, or ppo.advantage gae."
            )
        return
    if distill.is_direct and ppo.advantage != "teacher":
        raise ConfigError(
            f"distill.method {distill.method} reads no reward, so ppo.advantage {ppo.advantage} "
            "has no effect. Set ppo.advantage teacher and ppo.critic none."
        )
    if distill.is_direct and ppo.kl_placement != "none":
        raise ConfigError(
            f"distill.method {distill.method} reads no reference, and ppo.kl_placement is "
            f"{ppo.kl_placement}. Set ppo.kl_placement none."
        )
    if ppo.advantage == "teacher" and ppo.kl_placement == "reward":
        raise ConfigError(
            "ppo.kl_placement reward puts the reference KL into rewards, which ppo.advantage "
            "teacher does not read. Set ppo.kl_placement none or loss."
        )
