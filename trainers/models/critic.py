"""The critic: V(s) at every state of a response, on its own trunk or on the policy's.

A separate critic *is* a token classifier of transformers with one label, so that its export is
a plain folder. Values are read at positions P - 1 .. L - 1 (the state before each action, and
the one after the last), float32:

    tokens   p0 p1 | r0 r1 r2
    values      v0   v1 v2 v3          T + 1 of them
"""

import copy
from typing import cast, final

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel

from trainers.batch import TextInputs
from trainers.errors import ConfigError
from trainers.functional.logprobs import Absent, EntropyMode
from trainers.models.causal_lm import ActionScorer, hidden_states, score_responses
from trainers.models.output import PolicyOutput


def head_name(model: PreTrainedModel) -> str:
    """Return the name of a token classifier's head: `score`, or `classifier` in some families.

    Raises:
        ConfigError: there is no linear head.
    """
    names = [name for name, child in model.named_children() if isinstance(child, nn.Linear)]
    if len(names) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(names)} linear heads where a critic needs one. "
            "Set ppo.critic shared, or choose a model of another family."
        )
    return names[0]


def zero_head(width: int, device: torch.device) -> nn.Linear:
    """Return a value head [1, D] with which V = 0, float32; draws no random number."""
    head = nn.Linear(width, 1, device="meta")
    head.weight = nn.Parameter(torch.zeros(1, width, device=device))
    head.bias = nn.Parameter(torch.zeros(1, device=device))
    return head


def read_values(head: nn.Linear, hidden: Tensor, num_prompt: int) -> Tensor:
    """Return values [B, T + 1] from hidden states [B, L, D], in float32 even under autocast."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden[:, num_prompt - 1 :].float()
        return nn.functional.linear(states, head.weight.float(), bias).squeeze(-1)


def classifier_of(
    config: PretrainedConfig, name: str, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Return a token classifier with random weights, where tensors are now made.

    Raises:
        ConfigError: transformers has none for the architecture, that of the class `name`.
    """
    try:
        return AutoModelForTokenClassification.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ConfigError(
            f"transformers has no token classifier for {name}, which a separate critic is. Set "
            "ppo.critic shared."
        ) from error


def token_classifier(model: PreTrainedModel, head: nn.Linear | None = None) -> PreTrainedModel:
    """Return a token classifier on a copy of a causal model's body; its head is zero or `head`'s.

    Raises:
        ConfigError: transformers has no token classifier for this architecture.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    with torch.device("meta"):
        shell = classifier_of(config, type(model).__name__)
    mine = zero_head(config.get_text_config().hidden_size, model.device)
    if head is not None:
        mine.load_state_dict(head.state_dict())
    setattr(shell, head_name(shell), mine)
    setattr(shell, shell.base_model_prefix, copy.deepcopy(model.base_model))
    return shell


@final
class Critic(nn.Module):
    """A token classifier with one label that returns values.

    Args:
        model: the bare transformers model, also for export.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._head = head_name(model)

    @property
    def head(self) -> nn.Linear:
        """The value head [1, D]."""
        return cast(nn.Linear, self.model.get_submodule(self._head))

    def forward(self, inputs: TextInputs) -> Tensor:
        """Return values [B, T + 1], float32; those after a response's end mean nothing."""
        return read_values(self.head, hidden_states(self.model, inputs), inputs.num_prompt)


@final
class SharedActorCritic(nn.Module):
    """One trunk with the policy's head and a value head: one forward and backward instead of two.

    Args:
        model: the bare transformers model, also for generation and export.
        temperature: divides the logits.
        chunk: positions whose logits exist at once.
        absent: ids of probability 0, in sampling and in scoring.
    """

    def __init__(
        self, model: PreTrainedModel, *, temperature: float, chunk: int, absent: Absent = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.scorer = ActionScorer.of(
            model.config, temperature=temperature, chunk=chunk, absent=absent
        )
        self.value_head = zero_head(model.config.get_text_config().hidden_size, model.device)

    def forward(
        self, inputs: TextInputs, response_mask: Tensor, *, entropy: EntropyMode = "none"
    ) -> tuple[PolicyOutput, Tensor]:
        """Return the responses' figures [B, T] and values [B, T + 1]."""
        hidden = hidden_states(self.model, inputs)
        output = score_responses(
            self.model, self.scorer, hidden, inputs, response_mask, entropy=entropy
        )
        return output, read_values(self.value_head, hidden, inputs.num_prompt)

    def classifier(self) -> PreTrainedModel:
        """Return trunk and value head as a token classifier of their own, for export."""
        return token_classifier(self.model, self.value_head)
