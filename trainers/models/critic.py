"""The critic: V(s) at every state of a response, on its own trunk or on the policy's.

The value head is ours, a linear layer on the hidden states that the policy's head over the
vocabulary reads, so that any causal model has one. Values are read at positions P - 1 .. L - 1 (the
state before each action, and the one after the last), float32:

    tokens   p0 p1 | r0 r1 r2
    values      v0   v1 v2 v3          T + 1 of them

Where `ppo.critic_reads_logprobs` is on, the head reads `surprisal` beside the hidden state.

Shapes: B rows, P prompt, T response tokens, L = P + T, D width of the hidden states.
"""

import copy
import math
from typing import cast, final

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedModel

from trainers.batch import PolicyOutput, TextInputs
from trainers.functional.distillation import Against
from trainers.functional.logprobs import Absent, EntropyMode
from trainers.models.causal_lm import (
    ActionScorer,
    body_of,
    compare_responses,
    hidden_states,
    score_responses,
)

NUM_SURPRISALS = 4
"""Figures that `surprisal` returns of a state."""


def value_width(model: PreTrainedModel) -> int:
    """Return D of what reaches a causal model's heads; OPT-350m projects it, so that it is no size.

    A model without a head over the vocabulary is taken at its configuration's word.
    """
    head = cast(nn.Linear | None, model.get_output_embeddings())
    return model.config.get_text_config().hidden_size if head is None else head.weight.shape[1]


@final
class ValueHead(nn.Linear):
    """A value head [1, D], or [1, D + 4] where it reads `surprisal` as well.

    With it V = 0: weights are zeros, and no random number is drawn.

    Args:
        width: D of the hidden states.
        device: of its weights, float32.
        reads_logprobs: whether it reads `surprisal`.
    """

    def __init__(self, width: int, device: torch.device, *, reads_logprobs: bool = False) -> None:
        super().__init__(width + NUM_SURPRISALS * reads_logprobs, 1, device="meta")
        self.reads_logprobs = reads_logprobs
        self.weight = nn.Parameter(torch.zeros(1, self.in_features, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    @property
    def width(self) -> int:
        """D of the hidden states."""
        return self.in_features - NUM_SURPRISALS * self.reads_logprobs


def surprisal(inputs: TextInputs) -> Tensor:
    """Return figures of the surprisal of the policy's tokens before each state: [B, T + 1, 4].

        s = -logprobs;   1 - exp(-total), 1 - exp(-largest), 1 - exp(-latest), log(1 + total)

    total, largest and latest s of the tokens before the state, 0 where there are none. The token
    that is taken in the state has no part in it, so that the value remains a baseline. Zeros where
    `inputs` has no log-probabilities: in the pass that computes them, whose values nobody reads.
    """
    if inputs.logprobs is None:
        count = inputs.actions.shape[1] + 1
        return torch.zeros(len(inputs.tokens), count, NUM_SURPRISALS, device=inputs.tokens.device)
    latest = nn.functional.pad(-inputs.logprobs.float(), (1, 0))
    total, largest = latest.cumsum(1), latest.cummax(1).values
    shares = [-torch.expm1(-exponent) for exponent in (total, largest, latest)]
    return torch.stack([*shares, torch.log1p(total)], dim=-1)


def read_values(head: ValueHead, hidden: Tensor, inputs: TextInputs) -> Tensor:
    """Return values [B, T + 1] from hidden states [B, T + 1, D], in float32 even under autocast.

    Surprisal is multiplied by sqrt(D), about the norm of a state, and so it is learned as fast.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden.float()
        if head.reads_logprobs:
            states = torch.cat([states, surprisal(inputs) * math.sqrt(states.shape[2])], dim=2)
        return nn.functional.linear(states, head.weight.float(), head.bias.float()).squeeze(-1)


def _classifier_shell(trunk: PreTrainedModel) -> PreTrainedModel | None:
    """Return transformers' token classifier of a trunk's family, one label, without weights."""
    config = copy.deepcopy(trunk.config)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    try:
        with torch.device("meta"):
            return AutoModelForTokenClassification.from_config(config)
    except ValueError:  # there is none
        return None


def head_name(classifier: PreTrainedModel) -> str | None:
    """Return the name of a classifier's only linear head; None where it has none, or several."""
    names = [name for name, child in classifier.named_children() if isinstance(child, nn.Linear)]
    return names[0] if len(names) == 1 else None


def name_of_head(trunk: PreTrainedModel) -> str:
    """Return the name of the head in a token classifier on this trunk; `score` without one."""
    shell = _classifier_shell(trunk)
    return (None if shell is None else head_name(shell)) or "score"


def classifier_of(trunk: PreTrainedModel, head: nn.Linear) -> PreTrainedModel | None:
    """Return a token classifier made of a trunk and a value head [1, D], which are not copied.

    Returns:
        None where transformers has no class that computes the same from both.
    """
    shell = _classifier_shell(trunk)
    name = None if shell is None else head_name(shell)
    if shell is None or name is None or type(shell.base_model) is not type(trunk):
        return None
    own = cast(nn.Linear, shell.get_submodule(name))
    if own.weight.shape != head.weight.shape or (own.bias is None) != (head.bias is None):
        return None
    setattr(shell, name, head)
    setattr(shell, shell.base_model_prefix, trunk)
    return shell


@final
class Critic(nn.Module):
    """A trunk of its own with a value head.

    After `model.`, weights have the names that they have in a token classifier of the family,
    where there is one: checkpoints hold them by these names.

    Args:
        trunk: the bare transformers model below a head.
        head: the value head.
        name: of the head among the weights, as of `name_of_head`.
    """

    def __init__(self, trunk: PreTrainedModel, head: ValueHead, name: str = "score") -> None:
        super().__init__()
        self._trunk, self.name = trunk.base_model_prefix or "trunk", name
        self.model = nn.ModuleDict({self._trunk: trunk, name: head})

    @property
    def trunk(self) -> PreTrainedModel:
        """The bare transformers model, also for export."""
        return cast(PreTrainedModel, self.model[self._trunk])

    @property
    def head(self) -> ValueHead:
        """The value head."""
        return cast(ValueHead, self.model[self.name])

    def forward(self, inputs: TextInputs) -> Tensor:
        """Return values [B, T + 1], float32; those after a response's end mean nothing."""
        return read_values(self.head, hidden_states(self.trunk, inputs), inputs)


@final
class SharedActorCritic(nn.Module):
    """One trunk with the policy's head and a value head: one forward and backward instead of two.

    Args:
        model: the bare transformers model, also for generation and export.
        temperature: divides the logits.
        chunk: positions whose logits exist at once; None: as many as fit `LOGITS_BYTES`.
        absent: ids of probability 0, in sampling and in scoring.
        reads_logprobs: the value head reads `surprisal` as well.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        chunk: int | None,
        absent: Absent = (),
        reads_logprobs: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.scorer = ActionScorer.of(
            model.config, temperature=temperature, chunk=chunk, absent=absent
        )
        width = value_width(model)
        self.value_head = ValueHead(width, model.device, reads_logprobs=reads_logprobs)

    @property
    def trunk(self) -> PreTrainedModel:
        """The bare transformers model below both heads."""
        return body_of(self.model)

    @property
    def head(self) -> ValueHead:
        """The value head."""
        return self.value_head

    def forward(
        self,
        inputs: TextInputs,
        response_mask: Tensor,
        *,
        entropy: EntropyMode = "none",
        against: Against | None = None,
    ) -> PolicyOutput:
        """Return the responses' figures [B, T] and values [B, T + 1]."""
        hidden = hidden_states(self.trunk, inputs)
        read = self.model, self.scorer, hidden
        if against is not None:
            output = compare_responses(*read, inputs, response_mask, against)
        else:
            output = score_responses(*read, inputs, response_mask, entropy=entropy)
        return output._replace(values=read_values(self.value_head, hidden, inputs))
