"""The settings of PPO, in docs/ppo.md's names, and the types that all settings are made of."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainers.errors import ConfigError

RULES = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Clip = Annotated[float, Field(gt=0, lt=1)]
READ_VALUES = ("gae",)
"""The estimators of `ppo.advantage` that need a critic; the others compare the episodes of a
group, or a token with what a teacher makes of the others."""


@dataclass(config=RULES, frozen=True, kw_only=True)
class PPOConfig:
    """Proximal policy optimization (arXiv:1707.06347); docs/ppo.md has the maths."""

    num_iterations: Whole = 200
    """Rounds of collecting and learning; 0 leaves the stage out."""
    num_prompts: Count = 64
    """Different prompts of an iteration, over all ranks; in control, parallel environments, or
    starts where `ppo.critic` is none."""
    samples_per_prompt: Count = 4
    """Responses to each prompt; in control without a critic, episodes from each start."""
    num_steps: Count = 128
    """Control only: steps of each environment in an iteration; without a critic, the maximum of an
    episode."""
    num_epochs: Count = 4
    """Passes over an iteration's experience."""
    num_minibatches: Count = 1
    """Optimizer steps of a pass."""
    learning_rate: NonNegative = 3.0e-6
    """Rate of the policy's AdamW."""
    critic_learning_rate: NonNegative = 1.0e-5
    """Rate of the critic's AdamW; without effect when the trunk is shared."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of both rates after the warm-up, over the run's iterations."""
    warmup_fraction: Share = 0.0
    """Share of the iterations in which both rates rise linearly, from 0 in the first."""
    adam_betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's decay rates."""
    adam_eps: Positive = 1.0e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive | None = 1.0
    """Maximum gradient norm of an engine; null: no clipping."""
    gamma: Share = 1.0
    """Discount of an action: a response token, or an env step."""
    gae_lambda: Share = 0.95
    """Decay of generalized advantage estimation (arXiv:1506.02438)."""
    clip_low: Clip = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: Positive = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    clip_dual: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss where the advantage is negative (arXiv:1912.09729); null: off."""
    value_clip: Positive | None = 0.2
    """Maximum change of a value from its old one, in reward units; null: off."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss when the trunk is shared."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    target_kl: Positive | None = 0.1
    """KL(old, new) in nats per action above which the remaining epochs are skipped; null: off."""
    kl_placement: Literal["reward", "loss", "none"] = "reward"
    """Where the reference KL enters; `none` loads no reference."""
    kl_coef: NonNegative | None = None
    """Weight of the KL in the reward; null: 0.05."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL in the reward."""
    kl_loss_coef: NonNegative | None = None
    """Weight of the KL in the loss; null: 0.001."""
    kl_loss_estimator: Literal["k2", "k3", "k3_straight_through"] = "k3_straight_through"
    """Estimator of the KL in the loss; k1 is not offered, the mean of its gradient is zero."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether kl_coef follows `kl_target` (arXiv:1909.08593)."""
    kl_target: Positive = 6.0
    """KL that an adaptive controller aims at, in nats per episode."""
    kl_horizon: Positive = 10000.0
    """Episodes over which an adaptive controller acts."""
    advantage: Literal["gae", "rloo", "grpo", "teacher"] = "gae"
    """What an action is compared with: the critic's values (`gae`); the other responses to the same
    prompt, without oneself (`rloo`) or with (`grpo`); or what `distill.teacher` makes of the other
    tokens alone, without any reward (`teacher`). All but `gae` need `ppo.critic none`."""
    scale_advantages: bool | None = None
    """Divide by the standard deviation of the group; null: for `grpo`, not for `rloo`."""
    whiten_advantages: bool | None = None
    """Shift and scale advantages to mean 0 and variance 1, over all ranks; null: for `gae`."""
    reward_clip: Positive | None = None
    """Scores are clipped to +- this; null: off."""
    reward_scale: Positive = 1.0
    """Factor of the clipped scores."""
    reward_normalize: Literal["none", "batch", "running"] = "none"
    """Standardize an iteration's scores, or divide them by a running standard deviation."""
    missing_eos_penalty: NonNegative | None = None
    """Taken from the score of a one-turn answer that was cut at the limit; null: off."""
    on_truncation: Literal["auto", "score", "bootstrap", "penalty", "mask"] = "auto"
    """A cut episode is scored as final, bootstraps, is paid `truncation_penalty` for its last turn,
    or is left out (not in control); auto: score for one turn and without a critic, else
    bootstrap."""
    truncation_penalty: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Reward of the last turn of a cut episode under `on_truncation: penalty`."""
    critic: Literal["separate", "shared", "none"] = "separate"
    """A second model with its own optimizer, a value head on the policy's trunk, or none."""
    critic_init: str = "policy"
    """What a separate critic starts from: `policy`, or a model folder, such as `critic/` of a run.
    Its head starts at zero where the folder has none."""
    critic_reads_logprobs: bool = False
    """The value head also reads the surprisal of the policy's tokens before each state, from their
    old log-probabilities. Text only; takes no extra pass."""
    critic_warmup_iterations: Whole = 0
    """First iterations in which only the critic learns; not with a shared trunk."""
    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """What the loss is a mean over: actions, rows, or rows times the longest response."""
    old_logprobs: Literal["auto", "recompute", "generator"] = "auto"
    """Whose log-probabilities the ratio divides by; auto is recompute, but skips that pass where
    one epoch of one minibatch makes the ratio 1 and no KL in the reward needs it. Both are of the
    weights that wrote the rollout."""
    mismatch_correction: Literal["none", "tis"] = "none"
    """Truncated importance sampling, for generators whose log-probabilities are not exact."""
    max_error_rate: Share = 0.2
    """Share of failed rewards in a rollout above which every rank raises."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        _check_kl(self)
        _check_advantage(self)
        if self.critic_init.lower().endswith(".gguf"):
            raise ConfigError(
                f"ppo.critic_init {self.critic_init} must be `policy` or a model folder. Write the "
                f"GGUF file as one: llmgym export {self.critic_init} --out DIR"
            )
        if self.critic == "shared" and self.critic_warmup_iterations:
            raise ConfigError(
                "ppo.critic_warmup_iterations must be 0 when ppo.critic is shared: the warm-up "
                "would move the policy's trunk. Set ppo.critic separate, or drop the warm-up."
            )
        if self.mismatch_correction == "tis" and self.old_logprobs == "generator":
            raise ConfigError(
                "ppo.mismatch_correction tis compares the generator's log-probabilities with the "
                "trainer's, so ppo.old_logprobs cannot be generator. Set it to recompute."
            )

    @property
    def has_critic(self) -> bool:
        """True where a value head learns."""
        return self.critic != "none"

    @property
    def group_size(self) -> int:
        """Episodes that are compared with one another; 1 with a critic."""
        return 1 if self.has_critic else self.samples_per_prompt

    @property
    def scales_advantages(self) -> bool:
        """True where an advantage is divided by the standard deviation of its group."""
        return self.advantage == "grpo" if self.scale_advantages is None else self.scale_advantages

    @property
    def whitens_advantages(self) -> bool:
        """True where advantages are shifted and scaled over all ranks."""
        return self.has_critic if self.whiten_advantages is None else self.whiten_advantages

    @property
    def num_episodes(self) -> int:
        """Episodes of an iteration, over all ranks."""
        return self.num_prompts * self.samples_per_prompt

    @property
    def value_weight(self) -> float:
        """What the value loss counts in the total: its own optimizer, or a part of the trunk's."""
        return self.value_coef if self.critic == "shared" else 1.0

    @property
    def kl_weight(self) -> float:
        """The coefficient of the placement that is on; 0 without one."""
        if self.kl_placement == "none":
            return 0.0
        weight, default = {
            "reward": (self.kl_coef, 0.05),
            "loss": (self.kl_loss_coef, 0.001),
        }[self.kl_placement]
        return default if weight is None else weight


def _check_kl(ppo: PPOConfig) -> None:
    for field, weight, placement in (
        ("kl_coef", ppo.kl_coef, "reward"),
        ("kl_loss_coef", ppo.kl_loss_coef, "loss"),
    ):
        if weight is not None and ppo.kl_placement != placement:
            raise ConfigError(
                f"ppo.{field} {weight} has no effect while ppo.kl_placement is "
                f"{ppo.kl_placement}. Drop it, or set ppo.kl_placement {placement}."
            )
    if ppo.kl_controller == "adaptive" and ppo.kl_placement != "reward":
        raise ConfigError(
            "ppo.kl_controller adaptive steers ppo.kl_coef, which is off while ppo.kl_placement "
            f"is {ppo.kl_placement}. Set ppo.kl_placement reward, or ppo.kl_controller fixed."
        )


def _check_advantage(ppo: PPOConfig) -> None:
    """Refuse an estimator without what it compares with."""
    name = ppo.advantage
    if (name in READ_VALUES) != ppo.has_critic:
        remedy = (
            "Set ppo.critic none, or ppo.advantage gae."
            if ppo.has_critic
            else "Set ppo.critic separate or shared, or ppo.advantage rloo."
        )
        reads = "reads the values of a critic" if name in READ_VALUES else "reads no critic"
        raise ConfigError(f"ppo.advantage {name} {reads}, and ppo.critic is {ppo.critic}. {remedy}")
    if ppo.has_critic:
        return
    compares = name != "teacher"
    if compares and ppo.samples_per_prompt < 2:
        raise ConfigError(
            f"ppo.advantage {name} compares the responses to one prompt, and "
            "ppo.samples_per_prompt is 1. Set it to 2 or more; 4 to 16 are usual."
        )
    if compares and ppo.gamma != 1.0:
        raise ConfigError(
            f"ppo.advantage {name} compares whole episodes, so ppo.gamma must be 1, got "
            f"{ppo.gamma:g}. Set ppo.gamma 1, or ppo.advantage gae with a critic."
        )
    if ppo.on_truncation == "bootstrap":
        raise ConfigError(
            "ppo.on_truncation bootstrap needs the value of the last state, and ppo.critic is "
            "none. Set ppo.on_truncation score, penalty or mask."
        )
    if ppo.critic_warmup_iterations:
        raise ConfigError(
            "ppo.critic_warmup_iterations must be 0 when ppo.critic is none: nothing would learn."
        )
