"""A classifier or scalar reward model of Hugging Face as a reward. Needs: torch.

It reads text, never the policy's tokens: `rendering.py` says how prompt and response become ids of
its own tokenizer, by its own chat template. B texts, L tokens, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llmgym.chat_templates import EndlessTemplateError, control_tokens
from llmgym.errors import RewardError
from llmgym.messages import Sample, Score
from llmgym.rewards.base import Reward
from llmgym.rewards.context import NO_LIMIT
from llmgym.rewards.heads import column_of, read_head, split_head
from llmgym.rewards.model_loading import (
    Classifier,
    Forward,
    context_of,
    device_of,
    labels_of,
    pad_id,
    read_model,
    read_pretrained,
)
from llmgym.rewards.rendering import check_ends, judged_ids
from llmgym.rewards.rounding import BFLOAT16, EXACT, FLOAT16, FLOAT32
from llmgym.rewards.scale import Normalize, Scale
from llmgym.rewards.verdict import UNCUT

Messages = Sequence[Mapping[str, Any]]

PROBES = ("a", "a longer text beside it")
# How far a score may move when a longer text is scored beside it, in units of max(1, |score|).
TOLERANCE = 1e-3
LOW_PRECISION_TOLERANCE = 0.1
ROUNDING = {"float64": EXACT, "float32": FLOAT32, "float16": FLOAT16}
"""By the type a model computes in; of one that is not known, the widest."""


def continued(messages: Messages, response: str) -> tuple[Messages, str]:
    """Return dialogue and response, where the response may go on with the assistant's last words.

    A dialogue that ends with the assistant has a response that begins with those words.
    """
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], f"{messages[-1]['content']}{response}"
    return messages, response


@final
class RewardModel(Reward):
    """The score of a reward model or classifier, with its own tokenizer and template.

    Nothing is loaded before the first score. A prompt and response longer than the model takes are
    never cut: that sample is an error, so it leaves the loss and is counted.

    Args:
        model: a folder, a hub id, or a model with a sequence classification head.
        tokenizer: a folder, a hub id or a tokenizer; None: the one in the model's folder.
        name: of its part in metrics, `rewards/NAME/mean`.
        device: such as "cuda:1"; None: the current GPU, or the CPU.
        dtype: "float32", "bfloat16" or "auto", the one its file has.
        batch_size: texts scored at once; they are sorted by length.
        max_length: most tokens of prompt and response; None: what the model takes.
        head: what is read off its outputs; see `llmgym/rewards/heads.py`.
        normalize: "none"; "fixed", by `mean` and `std`; "running", by all earlier rollouts.
        mean: what becomes 0 where normalize is fixed.
        std: what becomes 1 where normalize is fixed.
        day: what a chat template prints that prints the day, YYYY-MM-DD; None: today. A run gives
            its own.
        forward: computes [B, K] outputs of input ids and attention mask instead of the model's
            weights, which are then not loaded: an engine that shards them. Every rank calls it
            equally often, so this reward is `collective`.

    Raises:
        RewardError: a setting is out of its range, the folder is no model's, or the head does not
            fit its labels; the rest when it is loaded.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of the config's `kwargs`
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        name: str = "reward_model",
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "auto"] = "float32",
        batch_size: int = 64,
        max_length: int | None = None,
        head: str = "logit",
        normalize: Normalize = "none",
        mean: float | None = None,
        std: float | None = None,
        day: str | None = None,
        forward: Forward | None = None,
    ) -> None:
        if dtype not in ("float32", "bfloat16", "auto"):
            raise RewardError(f'dtype is "float32", "bfloat16" or "auto"; got {dtype!r}')
        for setting, number in (("batch_size", batch_size), ("max_length", max_length)):
            if number is not None and number < 1:
                raise RewardError(f"{setting} must be 1 or more; got {number}")
        if isinstance(model, PreTrainedModel) and tokenizer is None:
            raise RewardError("a model given as an object needs its tokenizer as well")
        split_head(head)
        self.name, self.head = name, head
        self.collective = forward is not None
        self.scale = Scale(normalize, mean, std)
        self._model = model if isinstance(model, PreTrainedModel) else str(model)
        self._tokenizer = model if tokenizer is None else tokenizer
        self._device, self._dtype = device, dtype
        try:
            self._day = None if day is None else date.fromisoformat(day)
        except ValueError as error:
            raise RewardError(f"day is written YYYY-MM-DD; got {day!r}") from error
        self._batch_size, self._max_length = batch_size, max_length
        self._forward = forward
        self._classifier: Classifier | None = None
        self._module: PreTrainedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; it loads its weights itself."""
        return {**self.__dict__, "_classifier": None, "_module": None}

    @property
    def source(self) -> str:
        """What the model is called in messages."""
        model = self._model
        return model if isinstance(model, str) else model.config.name_or_path or "the reward model"

    @property
    def rounding(self) -> float:
        """How far two scores of a text may lie apart by rounding, as a share of the largest."""
        known = str(self._dtype if self._module is None else self._module.dtype)
        mean, std = self.scale.statistics
        return ROUNDING.get(known.removeprefix("torch."), BFLOAT16) * max(
            1.0, abs(mean) / (std or 1.0)
        )

    def module(self) -> PreTrainedModel | None:
        """Return what computes, loaded; None where that is an engine.

        Raises:
            RewardError: it does not load.
        """
        self._loaded()
        return self._module

    def check(self) -> None:
        """Read configuration and tokenizer, without weights.

        Raises:
            RewardError: one does not load, the tokenizer cannot pad or does not fit the model, or
                the head does not fit its labels.
        """
        config, tokenizer = self._config(), self._read_tokenizer()
        if tokenizer.pad_token_id is None:
            raise RewardError(
                f"the tokenizer of {self.source} has no pad token, so texts of different lengths "
                "cannot be scored together.\nGive it one and save it: tokenizer.pad_token = "
                "tokenizer.eos_token; tokenizer.save_pretrained(FOLDER)"
            )
        largest = max(tokenizer.get_vocab().values())
        embedded = config.get_text_config().vocab_size
        if largest >= embedded:
            raise RewardError(
                f"the tokenizer of {self.source} has ids up to {largest}, and the model embeds "
                f"only {embedded} tokens.\nName its own: --rewards.0.kwargs.tokenizer FOLDER"
            )
        column_of(self.head, labels_of(config), self.source)
        try:
            check_ends(tokenizer)
        except EndlessTemplateError as error:
            raise RewardError(
                f"{error}, that of the reward model {self.source}.\nName a tokenizer whose "
                "template ends: --rewards.0.kwargs.tokenizer FOLDER"
            ) from error

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score each prompt and response.

        Raises:
            RewardError: the model does not load.
        """
        classifier = self._loaded()
        texts = [self._ids(classifier, sample) for sample in samples]
        fitting = [i for i, ids in enumerate(texts) if len(ids) <= classifier.limit]
        values = self._values(classifier, [texts[i] for i in fitting])
        scores: list[Score] = [
            Score(0.0, status="error", error=self._too_long(len(ids), classifier.limit))
            for ids in texts
        ]
        for i, raw, value in zip(fitting, values, self.scale.apply(values), strict=True):
            scores[i] = Score(value, {} if self.scale.mode == "none" else {"raw": raw})
        return scores

    def _ids(self, classifier: Classifier, sample: Sample) -> list[int]:
        messages = [message.as_dict() for message in sample.messages]
        dialogue = continued(messages, str(sample.text))
        ids = judged_ids(classifier.tokenizer, *dialogue, control=classifier.control, day=self._day)
        return ids or [classifier.pad]

    def _values(self, classifier: Classifier, texts: Sequence[Sequence[int]]) -> list[float]:
        """Return what the head says of texts, in batches of like length, the longest first."""
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
        batches = [
            order[start : start + self._batch_size]
            for start in range(0, len(order), self._batch_size)
        ]
        values = [0.0] * len(texts)
        for number in range(self._rounds(len(batches), classifier.device)):
            if number >= len(batches):  # other ranks have more, and all shards must take part
                classifier.outputs([[classifier.pad]])
                continue
            rows = batches[number]
            scores = read_head(
                self.head, classifier.outputs([texts[i] for i in rows]), classifier.column
            )
            for i, value in zip(rows, scores, strict=True):
                values[i] = float(value)
        return values

    def _rounds(self, mine: int, device: torch.device) -> int:
        if not (self.collective and torch.distributed.is_initialized()):
            return mine
        most = torch.tensor(mine, device=device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)

    def _too_long(self, length: int, limit: int) -> str:
        return (
            f"prompt and response have {length} tokens and {self.source} takes {limit}: {UNCUT}. "
            "Lower --generation.max-new-tokens or --generation.max-prompt-tokens, or "
            "take a reward model with a longer context"
        )

    def _loaded(self) -> Classifier:
        if self._classifier is None:
            self.check()
            device = device_of(self._device)
            config, tokenizer = self._config(), self._read_tokenizer()
            classifier = Classifier(
                forward=self._forward or self._own_forward(pad_id(tokenizer), device),
                tokenizer=tokenizer,
                control=control_tokens(tokenizer),
                device=device,
                column=column_of(self.head, labels_of(config), self.source),
                limit=min(self._max_length or NO_LIMIT, context_of(config, tokenizer)),
            )
            self._classifier = self._padded_right_or_left(classifier)
        return self._classifier

    def _padded_right_or_left(self, classifier: Classifier) -> Classifier:
        """Pad where a text's score does not depend on longer texts of its batch.

        Raises:
            RewardError: it depends on either side.
        """
        if self._batch_size == 1:
            return classifier
        tolerance = TOLERANCE if self._dtype == "float32" else LOW_PRECISION_TOLERANCE
        short, long = (
            judged_ids(classifier.tokenizer, [], text)[: classifier.limit] for text in PROBES
        )
        alone = classifier.outputs([short])[0]
        for side in ("right", "left"):
            chosen = replace(classifier, side=side)
            moved = np.abs(chosen.outputs([short, long])[0] - alone)
            if np.all(moved <= tolerance * np.maximum(1.0, np.abs(alone))):
                return chosen
        raise RewardError(
            f"{self.source} scores a text differently when a longer one is scored beside it, "
            f"padded right or left (by {moved.max():.2g}).\nScore one at a time: "
            "--rewards.0.kwargs.batch_size 1"
        )

    def _config(self) -> PretrainedConfig:
        if isinstance(self._model, PreTrainedModel):
            return self._model.config
        folder = Path(self._model)
        looks_local = folder.exists() or self._model.count("/") > 1 or self._model[:1] in "./~"
        if looks_local and not (folder / "config.json").is_file():
            raise RewardError(
                f"the reward model {self._model} is no model folder: it has no config.json.\n"
                "llmgym reward-model makes one, in runs/NAME/model"
            )
        return read_pretrained(AutoConfig, self._model, "configuration")

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        if isinstance(self._tokenizer, PreTrainedTokenizerBase):
            return self._tokenizer
        return read_pretrained(AutoTokenizer, str(self._tokenizer), "tokenizer")

    def _own_forward(self, pad: int, device: torch.device) -> Forward:
        model = self._model
        if isinstance(model, str):
            model = read_model(model, self._dtype)
        model = model.to(device).eval()  # type: ignore[arg-type]
        model.config.get_text_config().pad_token_id = pad  # decoders find a text's end by it
        self._module = model
        return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits
