"""Generation with a drafter: a small model drafts, the policy verifies; one row at a time.

The responses are the policy's own: greedy the same tokens, sampled the same law, and their
log-probabilities are those of the policy's forward, up to rounding. It pays where rows are few and
the policy is much larger than its drafter; many rows are written faster by `transformers`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmgym.speculative.observing import DraftView
from trainers.config import Config, SpeculativeConfig
from trainers.errors import ConfigError
from trainers.generation.base import Generator, GeneratorParts, Request, Response, Sampling
from trainers.generation.drafting import (
    DraftRule,
    RowDrawing,
    RowPair,
    RowReader,
    controller_rule,
    entropy_rule,
    fixed_length,
)
from trainers.generation.recording import measure_times
from trainers.generation.transformers import TransformersGenerator, caching
from trainers.models.loading import load_causal_lm, load_config
from trainers.models.mlp import load_mlp

FORMS = {2: "token"}
"""The form of `llmgym/Speculative-v0` by its number of actions; any other is "cycle"."""


def check_engine(config: Config) -> None:
    """Refuse what cannot draft, before weights load.

    Raises:
        ConfigError: no drafter, one of another vocabulary, a controller that is none, weights that
            no rank holds.
    """
    settings = config.generation.speculative
    if settings.drafter is None:
        raise ConfigError(
            "generation.engine speculative drafts with a smaller model: name its folder with "
            "--generation.speculative.drafter FOLDER."
        )
    if config.backend.name == "deepspeed" and config.backend.zero.stage == 3:
        raise ConfigError(
            "generation.engine speculative reads the complete policy on every rank, and "
            "backend.zero.stage 3 has none that holds it. Set --backend.zero.stage 2."
        )
    if config.model.path is not None:
        _check_tokenizers(config.tokenizer.path or config.model.path, settings.drafter)
    if settings.controller is not None:
        controller_form(settings.controller)


def _check_tokenizers(target: str, drafter: str) -> None:
    """Refuse a drafter whose ids mean other text; folders on this machine are compared."""
    files = [Path(folder) / "tokenizer.json" for folder in (target, drafter)]
    if not all(file.is_file() for file in files):
        return
    ours, theirs = (json.loads(file.read_text("utf-8"))["model"].get("vocab") for file in files)
    if ours != theirs:
        raise ConfigError(
            f"the drafter {drafter} has another vocabulary than {target}: an id of one is other "
            "text in the other. Make a drafter from the model itself, or choose one of its family."
        )


def controller_form(folder: str) -> str:
    """Return the form of a trained controller: "cycle" or "token".

    Raises:
        ConfigError: there is no policy of numbers in the folder.
    """
    try:
        actions = json.loads((Path(folder) / "config.json").read_text("utf-8"))["actions"]["n"]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"generation.speculative.controller {folder} is no policy of llmgym/Speculative-v0: "
            f"{error}. llmgym train --run.kind control --envs.0.id llmgym/Speculative-v0 makes one."
        ) from error
    return FORMS.get(actions, "cycle")


def rule_of(settings: SpeculativeConfig) -> DraftRule:
    """Return the rule that the settings ask for."""
    if settings.controller is not None:
        policy = load_mlp(Path(settings.controller))
        form = controller_form(settings.controller)
        return controller_rule(lambda obs: int(policy.mode(torch.from_numpy(obs)[None])), form)
    if settings.entropy is not None:
        return entropy_rule(settings.entropy)
    return fixed_length(settings.length)


@final
class SpeculativeGenerator(Generator):
    """Writes with the policy that is being trained, and a drafter that stays as it is.

    Args:
        parts: as of every generator.
        drafter: a model of the policy's vocabulary.
        rule: how far to draft.
        longest: the largest number of drafted tokens.

    Attributes:
        cycles: passes of the policy so far.
        drafts: tokens drafted so far.
        kept: those of them that were kept.
        tokens: tokens written so far.
    """

    exact = True

    def __init__(
        self, parts: GeneratorParts, drafter: PreTrainedModel, *, rule: DraftRule, longest: int
    ) -> None:
        self._plain = TransformersGenerator(parts)
        self._target: PreTrainedModel = parts.policy.model
        self._absent = parts.policy.scorer.absent
        self._drafter, self._rule, self._longest = drafter, rule, longest
        self._ends = frozenset(parts.eos_token_ids)
        self._autocast = parts.autocast
        self._costs: tuple[float, float] | None = None
        self.cycles = self.drafts = self.kept = self.tokens = 0

    @property
    def policy_version(self) -> int:
        """The version of the weights in use."""
        return self._plain.policy_version

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Write one response to each request, one after another."""
        device = next(self._target.parameters()).device.type
        mixed = self._autocast is not None
        with caching(self._target), torch.autocast(device, self._autocast, enabled=mixed):
            return [self._written(request, sampling) for request in requests]

    def _written(self, request: Request, sampling: Sampling) -> Response:
        if self._costs is None:
            draft, verify = measure_times(
                self._target, self._drafter, request.token_ids, self._longest
            )
            self._costs = (draft / verify[0], verify[-1] / verify[0])
        pair = RowPair(
            target=RowReader(self._target, self._absent),
            drafter=RowReader(self._drafter, self._absent),
            rule=self._rule,
            ends=self._ends,
            drawing=RowDrawing(sampling, request),
            view=DraftView(
                longest=self._longest, draft_cost=self._costs[0], verify_cost=self._costs[1]
            ),
        )
        done = pair.write(request)
        self.cycles, self.drafts = self.cycles + done.cycles, self.drafts + done.drafts
        self.kept, self.tokens = self.kept + done.kept, self.tokens + len(done.token_ids)
        return Response(
            token_ids=tuple(done.token_ids),
            logprobs=tuple(done.logprobs),
            finish_reason="stop" if done.token_ids[-1] in self._ends else "length",
            policy_version=self.policy_version,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the policy's weights; the drafter stays as it is."""
        self._plain.load_weights(weights, version)

    def sleep(self) -> None:
        """Give back what the policy's weights take, where they are a copy."""
        self._plain.sleep()

    def describe(self) -> str:
        """Return what the header says."""
        return f"speculative, up to {self._longest} tokens drafted; one row at a time"


def make_generator(parts: GeneratorParts) -> Generator:
    """Return the generator of `generation.engine speculative`.

    Raises:
        ConfigError: the drafter cannot be loaded, or has another number of ids.
    """
    assert parts.config is not None, "the settings of the run name the drafter"
    settings = parts.config.generation.speculative
    assert settings.drafter is not None, "check_engine has refused a run without one"
    target = parts.policy.model
    size = load_config(settings.drafter).get_text_config().vocab_size
    if size != target.config.get_text_config().vocab_size:
        raise ConfigError(
            f"the drafter {settings.drafter} has {size} ids, and the policy "
            f"{target.config.get_text_config().vocab_size}. Make a drafter from the model itself."
        )
    drafter = load_causal_lm(settings.drafter).eval().requires_grad_(False).to(target.device)
    RowReader(target)
    RowReader(drafter)
    longest = max(settings.length, settings.longest)
    return SpeculativeGenerator(parts, drafter, rule=rule_of(settings), longest=longest)
