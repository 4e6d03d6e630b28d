"""The settings of the reward model stage."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainers.config.ppo import RULES, Count, NonNegative, Positive, Share, Whole
from trainers.errors import ConfigError


@dataclass(config=RULES, frozen=True, kw_only=True)
class RewardModelConfig:
    """Stage of its own that learns to judge: classes, or which of two responses is better."""

    num_epochs: Whole = 0
    """Passes over the rows; 0 leaves the stage out."""
    label_column: str | None = None
    """Column of label ids or names: `data.response_column` is sorted into classes. Null: rows are
    preferences of `chosen_column` over `rejected_column`."""
    labels: str | None = None
    """File of label names, one a line, id 0 first; null: `labels.txt` beside the data, if any."""
    groups: dict[str, list[str]] | None = None
    """Classes by name, each a list of labels; null: every label is its own class. A row belongs to
    a class if all its labels do; every other row is left out and counted."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of a class in the loss; balanced: all classes weigh the same in total, and the
    probabilities no longer follow how frequent a class is."""
    chosen_column: str = "chosen"
    """Column with the better response."""
    rejected_column: str = "rejected"
    """Column with the worse response."""
    margin_column: str | None = None
    """Column with the least difference of scores, at least 0; null: 0 for every row."""
    test: str | None = None
    """File judged at the end; null: `test` beside data named `train`, if it is there."""
    batch_size: Count = 32
    """Rows of one optimizer step, over all ranks."""
    learning_rate: Positive = 2.0e-5
    """Peak rate; 1e-3 suits a fresh model."""
    warmup_fraction: Share = 0.03
    """Share of the steps with a linearly rising rate; a cosine to 10 % follows."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive | None = 1.0
    """Largest gradient norm; null: no clipping."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the prompts, or of the texts where there are none, kept back to be judged."""

    def __post_init__(self) -> None:
        """Refuse a label that is in two classes, and a single class."""
        if self.groups is None:
            return
        listed = [label for labels in self.groups.values() for label in labels]
        twice = [label for label in listed if listed.count(label) > 1]
        if twice:
            raise ConfigError(
                f'reward_model.groups lists the label "{twice[0]}" twice. List it once.'
            )
        if len(self.groups) < 2:
            raise ConfigError(
                f"reward_model.groups must name two classes or more, got {len(self.groups)}."
            )
