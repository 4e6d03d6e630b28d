"""The one list of panels: what is shown of a run, in the order in which questions are asked. Pure.

A metric named with {braces} is a family: every metric that fits, the braces' part being its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainers.run_dir.record import Curves

Kind = Literal["lines", "scatter", "stack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: what it shows.
        metrics: metric or family -> its name in the legend; of a scatter, x first, then y.
        unit: of the values.
        healthy: what to look for, in a few words.
        kind: lines over iterations, one metric against another, or areas on top of each other.
        is_log: a logarithmic axis, where all values are above 0.
        spans: what the axis shows at least, so that noise around a steady value looks small.
        is_noisy: a long curve is drawn pale, with its running mean over it.
    """

    title: str
    metrics: Mapping[str, str]
    unit: str = ""
    healthy: str = ""
    kind: Kind = "lines"
    is_log: bool = False
    spans: tuple[float, float] | None = None
    is_noisy: bool = True

    def drawn_curves(self, curves: Curves) -> dict[str, Mapping[int, float]]:
        """Return name in the legend -> curve, of the metrics that were logged."""
        named = {}
        for metric, name in self.metrics.items():
            pattern = re.sub(r"\\\{\w+\\\}", "(.+)", re.escape(metric))
            for key in sorted(curves):
                if match := re.fullmatch(pattern, key):
                    named[name or match[1]] = curves[key]
        if self.kind == "scatter" and len(named) < len(self.metrics):
            return {}
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A question, and the panels that answer it."""

    question: str
    how: str
    panels: tuple[Panel, ...]


REWARD = Panel(
    title="Reward",
    metrics={"objective/scores": "mean of the batch"},
    unit="an episode",
    healthy="rises, then levels off",
)
HELD_OUT = Panel(
    title="Held-out score",
    metrics={"eval/score": "mean"},
    unit="95 % interval shaded",
    healthy="rises by more than its interval",
)
KL = Panel(
    title="KL to the reference",
    metrics={"objective/kl": "per episode"},
    unit="nats per episode",
    healthy="0 at first, then 1 to 20",
)
LENGTH = Panel(
    title="Length",
    metrics={"completions/mean_length": "tokens"},
    unit="tokens",
    healthy="no drift to the limit",
    spans=(0, 1),
)

LEARNING = Section(
    question="Is it learning?",
    how="The held-out score is the one to trust: it is of tasks that were never trained on.",
    panels=(
        HELD_OUT,
        REWARD,
        Panel(
            title="Parts of the reward",
            metrics={"rewards/{part}/mean": ""},
            unit="mean of each",
            healthy="rise together; one that rises alone is being gamed",
        ),
        Panel(
            title="Success",
            metrics={"env/{id}/success": ""},
            unit="share of episodes, highest reward",
            healthy="rises",
            spans=(0, 1),
        ),
    ),
)
HONEST = Section(
    question="Is it honest?",
    how="A reward is gamed where it rises while the text drifts: KL far up, answers at the limit, "
    "the same words again and again. Look here, then read the samples.",
    panels=(
        Panel(
            title="Reward against KL",
            metrics={"objective/kl": "KL (nats)", "objective/scores": "reward"},
            unit="pale: early, strong: late",
            healthy="up, not only to the right",
            kind="scatter",
        ),
        KL,
        LENGTH,
        Panel(
            title="Cut at the limit",
            metrics={"completions/clipped_ratio": "completions"},
            unit="share",
            healthy="below 0.1",
            spans=(0, 0.1),
        ),
        Panel(
            title="Variety",
            metrics={"completions/distinct_2": "distinct pairs"},
            unit="share of all pairs of tokens",
            healthy="steady",
            spans=(0, 1),
        ),
        Panel(
            title="Repetition",
            metrics={"completions/repeat_4gram": "repeated runs of four"},
            unit="share of runs of four tokens",
            healthy="below 0.1",
            spans=(0, 0.1),
        ),
    ),
)
HEALTHY = Section(
    question="Is PPO healthy?",
    how="Small steps, a critic that explains, an entropy that falls slowly.",
    panels=(
        Panel(
            title="Size of a step",
            metrics={"policy/approxkl_avg": "approximate KL"},
            unit="nats per action",
            healthy="1e-5 to 0.02",
        ),
        Panel(
            title="Clipped",
            metrics={"policy/clipfrac_avg": "policy", "value/clipfrac_avg": "values"},
            unit="share",
            healthy="below 0.2",
            spans=(0, 0.1),
        ),
        Panel(
            title="Largest ratio",
            metrics={"policy/ratio_max": "largest"},
            unit="probability now over then",
            healthy="below 10",
            is_log=True,
        ),
        Panel(
            title="Entropy",
            metrics={"policy/entropy_avg": "policy"},
            unit="nats per action",
            healthy="falls slowly",
        ),
        Panel(
            title="Explained variance",
            metrics={"value/explained_var": "critic"},
            unit="share of the returns' variance",
            healthy="above 0; 0.3 to 0.9",
        ),
        Panel(
            title="Value loss",
            metrics={"loss/value_avg": "critic"},
            unit="reward squared",
            healthy="falls",
        ),
        Panel(
            title="Gradient norm",
            metrics={"policy/grad_norm": "policy", "value/grad_norm": "critic"},
            unit="before clipping",
            healthy="steady, few spikes",
            is_log=True,
        ),
        Panel(
            title="Learning rate",
            metrics={"policy/lr": "policy", "value/lr": "critic"},
            healthy="as scheduled",
            is_noisy=False,
        ),
    ),
)
FAST = Section(
    question="Is it fast?",
    how="The largest phase is where to look first.",
    panels=(
        Panel(
            title="Tokens a second",
            metrics={"perf/tokens_per_s": "all ranks"},
            unit="while collecting",
            healthy="steady",
            spans=(0, 1),
        ),
        Panel(
            title="Episodes a second",
            metrics={"perf/samples_per_s": "all ranks"},
            unit="while collecting",
            healthy="steady",
            spans=(0, 1),
        ),
        Panel(
            title="Time of an iteration",
            metrics={"timing_s/{phase}": ""},
            unit="seconds, by phase",
            healthy="no growing phase",
            kind="stack",
        ),
        Panel(
            title="Memory",
            metrics={"perf/cpu_gb": "process"},
            unit="GiB, peak, the largest rank",
            healthy="flat",
            spans=(0, 1),
        ),
    ),
)
SUPERVISED = Section(
    question="The supervised stage",
    how="Cross-entropy of response tokens, over optimizer steps.",
    panels=(
        Panel(
            title="Loss",
            metrics={"sft/loss": "trained on", "sft/holdout_loss": "held out"},
            unit="nats per token",
            healthy="both fall; held out rises: too long",
        ),
        Panel(
            title="Gradient norm (supervised)",
            metrics={"sft/grad_norm": "model"},
            unit="before clipping",
            healthy="steady",
            is_log=True,
        ),
        Panel(
            title="Learning rate (supervised)",
            metrics={"sft/lr": "model"},
            healthy="as scheduled",
            is_noisy=False,
        ),
    ),
)
JUDGING = Section(
    question="The reward model",
    how="What it judges right of rows it never learned, beside a judge that reads no text.",
    panels=(
        Panel(
            title="Judged right",
            metrics={
                "reward_model/accuracy": "learned from",
                "reward_model/{part}/accuracy": "",
                "reward_model/{part}/baseline": "without the text",
            },
            unit="share of rows",
            healthy="well above the judge that reads no text",
        ),
        Panel(
            title="Loss of judgement",
            metrics={"reward_model/loss": "learned from", "reward_model/{part}/loss": ""},
            unit="nats per row",
            healthy="both fall; held out rises: too long",
        ),
        Panel(
            title="Error of its confidence",
            metrics={"reward_model/{part}/calibration_error": ""},
            unit="share",
            healthy="below 0.05",
            spans=(0, 0.1),
        ),
        Panel(
            title="Gradient norm (reward model)",
            metrics={"reward_model/grad_norm": "model"},
            unit="before clipping",
            healthy="steady",
            is_log=True,
        ),
        Panel(
            title="Learning rate (reward model)",
            metrics={"reward_model/lr": "model"},
            healthy="as scheduled",
            is_noisy=False,
        ),
    ),
)
SECTIONS = (LEARNING, HONEST, HEALTHY, FAST, SUPERVISED, JUDGING)
OVERVIEW = (REWARD, HELD_OUT, KL, LENGTH)
"""The panels of reward.png."""

TOTAL = "timing_s/total"
"""The sum of the phases; it is no phase of its own."""

DRIFT: Mapping[str, str] = {
    "objective/scores": "Reward",
    "objective/kl": "KL, nats per episode",
    "completions/mean_length": "Length, tokens",
    "completions/clipped_ratio": "Cut at the limit, share",
    "completions/distinct_2": "Distinct pairs of tokens, share",
    "completions/repeat_4gram": "Repeated runs of four tokens, share",
    "policy/entropy_avg": "Entropy, nats per action",
    "policy/generator_logp_diff_max": "Sampler against trainer, nats at most",
}
"""What is compared between the first and the last tenth of a run."""

FINAL: Mapping[str, str] = {
    "eval/score": "Held-out score",
    "eval/best": "Best held-out score",
    **DRIFT,
    "policy/approxkl_avg": "Size of a step, nats per action",
    "value/explained_var": "Explained variance",
    "perf/tokens_per_s": "Tokens a second",
    TOTAL: "Seconds an iteration",
    "sft/loss": "Supervised loss, nats per token",
    "sft/holdout_loss": "Supervised loss, held out",
    "reward_model/loss": "Reward model's loss, nats per row",
    "reward_model/accuracy": "Judged right, share",
}
"""The figures in which finished runs are compared."""
