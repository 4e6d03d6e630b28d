"""Load a classifier or scalar reward model of Hugging Face, and compute its outputs. Needs: torch.

B texts, L tokens, K labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmgym.chat_templates import ControlTokens
from llmgym.errors import RewardError
from llmgym.rewards.context import longest_sequence

Forward = Callable[[Tensor, Tensor], Tensor]
Side = Literal["right", "left"]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model that is loaded, and what its texts are made of.

    Attributes:
        forward: input ids and attention mask, both [B, L], to outputs [B, K].
        control: the tokens that no text it reads may write.
        column: of the outputs that counts.
        limit: most tokens it takes.
        side: where shorter texts are padded.
    """

    forward: Forward
    tokenizer: PreTrainedTokenizerBase
    control: ControlTokens
    device: torch.device
    column: int
    limit: int
    side: Side = "right"

    @property
    def pad(self) -> int:
        """The id of padding."""
        return pad_id(self.tokenizer)

    def outputs(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Return [B, K] float64 outputs of token ids."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(0, len(row)) if self.side == "right" else slice(width - len(row), width)
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        with torch.inference_mode():
            logits = self.forward(ids.to(self.device), mask.to(self.device))
        return logits.double().cpu().numpy()


def read_pretrained(kind: Any, source: str, what: str) -> Any:  # noqa: ANN401 - an Auto class
    """Return what one of transformers' Auto classes reads in a folder; `what` names it in errors.

    Raises:
        RewardError: it does not load.
    """
    try:
        return kind.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RewardError(
            f"the {what} of the reward model {source} does not load: {error}"
        ) from error


def read_model(source: str, dtype: str) -> PreTrainedModel:
    """Load a classifier; the global generator is untouched, and no head is ever made up.

    Raises:
        RewardError: it does not load, or has no trained head.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewardError(f"the reward model {source} does not load: {error}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise RewardError(
            f"{source} is no trained reward model: its file has no {missing}, which would be "
            "random.\nllmgym reward-model trains one from it: --model.path"
        )
    return model


def labels_of(config: PretrainedConfig) -> list[str]:
    """Return the names of the outputs."""
    names: dict[Any, str] = dict(config.id2label or {})  # type: ignore[arg-type]
    return [str(names.get(i, i)) for i in range(config.num_labels or len(names))]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of padding, which is known to exist."""
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return pad


def context_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens that model and tokenizer both take."""
    return min(longest_sequence(config), tokenizer.model_max_length)


def device_of(device: str | None) -> torch.device:
    """Return the device given; without one, the current GPU, or the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
