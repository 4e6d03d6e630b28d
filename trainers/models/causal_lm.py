"""The text policy: any causal language model of transformers, scored at its responses only.

Shapes: B rows, P prompt tokens, T response tokens, L = P + T, N = response tokens in the mask,
V vocabulary, D hidden. Logits [B, L, V] are never built:

    tokens   p0 p1 p2 | r0 r1 r2
    hidden         h2   h3 h4        the state *before* a token predicts it: P - 1 .. L - 2
"""

import inspect
from dataclasses import dataclass
from typing import Any, Self, cast, final

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from llmgym.rewards.context import longest_sequence, rope_limit
from trainers.batch import PolicyOutput, TextInputs
from trainers.errors import ConfigError
from trainers.functional.distillation import Against, every_logprob, linear_figures
from trainers.functional.logprobs import Absent, EntropyMode, linear_logprobs, without
from trainers.models.lean_layers import lean_states, reads_lean
from trainers.models.packed_rows import Layout, longest_packed

PROBE_TOLERANCE = 1e-3  # a wrong scale, cap or position is off by far more; rounding by far less
LONG_ROW = 8
"""Tokens of the end of a long row that are computed to see what it does to the rows beside it."""
FARTHEST = 2**20
"""Position where positions have no end."""


def position_ids(attention_mask: Tensor) -> Tensor:
    """Count real tokens from 0 in each row: [B, L], so that left padding moves nothing."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return what the head of a causal model reads; a body alone is its own."""
    body = model.base_model
    if body is model and model.get_output_embeddings() is not None:
        body = model.get_submodule("model")  # Llama 4 names another prefix than it has
    return cast(PreTrainedModel, body)


def hides_left_padding(model: PreTrainedModel) -> bool:
    """Tell whether a mask hides padding before a row completely.

    A recurrent state or a convolution would read it, and attention in chunks would count it.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return not model._is_stateful and kinds <= {"full_attention", "sliding_attention"}


def hidden_states(body: PreTrainedModel, inputs: TextInputs) -> Tensor:
    """Return a decoder body's last hidden states before each action and after the last.

    Returns:
        [B, T + 1, D], the first that of the last prompt token; padding cannot reach them.
    """
    limit = longest_packed(body)
    if limit and int(inputs.sizes.sum(1).max()) <= limit:  # a plan has no values to look at
        return packed_states(body, inputs, Layout.of(inputs))
    first = inputs.num_prompt - 1
    if hides_left_padding(body):
        return _body_states(body, inputs.tokens, inputs.attention_mask)[:, first:]
    # Padding before a row goes behind it, where nothing causal reads it, and back afterwards.
    gaps = inputs.attention_mask.long().argmax(1, keepdim=True)
    columns = torch.arange(inputs.tokens.shape[1], device=gaps.device)
    there, back = (columns + gaps) % len(columns), (columns - gaps) % len(columns)
    tokens, mask = inputs.tokens.gather(1, there), inputs.attention_mask.gather(1, there)
    states = _body_states(body, tokens, mask)
    return states.gather(1, back[:, first:, None].expand(-1, -1, states.shape[2]))


def packed_states(body: PreTrainedModel, inputs: TextInputs, layout: Layout) -> Tensor:
    """Return the same of rows put end to end."""
    tokens = inputs.tokens.masked_fill(~inputs.attention_mask, 0).flatten()[layout.source]
    if reads_lean(body):
        return lean_states(body, tokens, layout)
    states = body(
        input_ids=tokens[None],
        position_ids=layout.positions[None],
        # Of four dimensions: transformers takes it for a finished mask and makes none of [N, N].
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        use_cache=False,
        layout=layout,
    ).last_hidden_state[0]
    return states.index_select(0, layout.places.flatten()).unflatten(0, layout.places.shape)


def _body_states(body: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    arguments = {"position_ids": position_ids(mask)}
    if "position_ids" not in inspect.signature(body.forward).parameters:
        arguments = {}  # ALiBi families count by the mask themselves
    tokens = tokens.masked_fill(~mask, 0)
    out = body(input_ids=tokens, attention_mask=mask.long(), use_cache=False, **arguments)
    return out.last_hidden_state


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionScorer:
    """From hidden states to log-probabilities of the tempered distribution.

        logits = softcap * tanh(scale * (W h + b) / softcap);  p = softmax(logits / temperature)

    Attributes:
        temperature: divides the logits.
        chunk: positions whose logits exist at once; None: as many as fit `LOGITS_BYTES`.
        scale: factor of the logits (Granite, Cohere, MiniCPM).
        softcap: bound of the logits (Gemma 2, RecurrentGemma, xLSTM), or None.
        absent: ids of probability 0.
    """

    temperature: float
    chunk: int | None
    scale: float = 1.0
    softcap: float | None = None
    absent: Absent = ()

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        *,
        temperature: float,
        chunk: int | None,
        absent: Absent = (),
    ) -> Self:
        """Read scale and cap from the model's configuration."""
        text = config.get_text_config()
        scale = float(getattr(text, "logit_scale", None) or 1.0)
        for divisor in ("logits_scaling", "logits_mup_width_multiplier"):
            scale /= float(getattr(text, divisor, None) or 1.0)
        caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
        softcap = next((cap for name in caps if (cap := getattr(text, name, None))), None)
        return cls(
            temperature=temperature, chunk=chunk, scale=scale, softcap=softcap, absent=absent
        )

    def __call__(
        self, head: nn.Linear, hidden: Tensor, targets: Tensor, *, entropy: EntropyMode
    ) -> tuple[Tensor, Tensor | None]:
        """Return logprobs [N] and entropies [N] or None, of `targets` [N] after `hidden` [N, D]."""
        hidden, bias = self._scaled(head, hidden)
        return linear_logprobs(
            hidden, head.weight, bias, targets, entropy=entropy, **self._settings()
        )

    def compared(
        self, head: nn.Linear, hidden: Tensor, targets: Tensor, against: Against
    ) -> Tensor:
        """Return the figures [N, K] of the distributions after `hidden` [N, D]."""
        hidden, bias = self._scaled(head, hidden)
        return linear_figures(hidden, head.weight, bias, targets, against, **self._settings())

    def every(self, head: nn.Linear, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [N, V] of every token after `hidden` [N, D]."""
        hidden, bias = self._scaled(head, hidden)
        return every_logprob(hidden, head.weight, bias, **self._settings())

    def _scaled(self, head: nn.Linear, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.scale == 1.0:
            return hidden, head.bias
        return hidden * self.scale, None if head.bias is None else head.bias * self.scale

    def _settings(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "chunk": self.chunk,
            "softcap": self.softcap,
            "absent": self.absent,
        }


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """Return [B, T, ...] with `values` [N, ...] where `mask` [B, T] is True, 0 elsewhere."""
    shape = (*mask.shape, *values.shape[1:])
    places = mask.view(*mask.shape, *[1] * (values.dim() - 1)).expand(shape)
    return values.new_zeros(shape).masked_scatter(places, values)


def score_responses(
    model: PreTrainedModel,
    scorer: ActionScorer,
    hidden: Tensor,
    inputs: TextInputs,
    response_mask: Tensor,
    *,
    entropy: EntropyMode,
) -> PolicyOutput:
    """Score the tokens of `response_mask` [B, T] from the hidden states [B, T + 1, D].

    With no token at all every parameter still gets a gradient, zero, which DDP waits for.
    """
    head = cast(nn.Linear, model.get_output_embeddings())
    logprobs, entropies = scorer(
        head, hidden[:, :-1][response_mask], inputs.actions[response_mask], entropy=entropy
    )
    if entropies is not None:
        entropies = scattered(entropies, response_mask)
    return PolicyOutput(scattered(logprobs, response_mask), entropies)


def compare_responses(
    model: PreTrainedModel,
    scorer: ActionScorer,
    hidden: Tensor,
    inputs: TextInputs,
    response_mask: Tensor,
    against: Against,
) -> PolicyOutput:
    """Compare distributions before the tokens of `response_mask` [B, T] with a teacher's.

    Every other figure is zero.
    """
    head = cast(nn.Linear, model.get_output_embeddings())
    before, tokens = hidden[:, :-1][response_mask], inputs.actions[response_mask]
    figures = scattered(scorer.compared(head, before, tokens, against), response_mask)
    return PolicyOutput(torch.zeros_like(figures[..., 0]), None, compared=figures)


@final
class CausalPolicy(nn.Module):
    """A causal language model that returns what PPO needs.

    Args:
        model: the bare transformers model, also for generation and export.
        temperature: divides the logits.
        chunk: positions whose logits exist at once; None: as many as fit `LOGITS_BYTES`.
        absent: ids of probability 0, in sampling and in scoring.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        chunk: int | None,
        absent: Absent = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.scorer = ActionScorer.of(
            model.config, temperature=temperature, chunk=chunk, absent=absent
        )

    def forward(
        self,
        inputs: TextInputs,
        response_mask: Tensor,
        *,
        entropy: EntropyMode = "none",
        against: Against | None = None,
    ) -> PolicyOutput:
        """Return log-probabilities [B, T] of the responses, and their entropy where asked.

        With `against` only what is made of both distributions, [B, T, K].
        """
        read = self.model, self.scorer, hidden_states(body_of(self.model), inputs)
        if against is not None:
            return compare_responses(*read, inputs, response_mask, against)
        return score_responses(*read, inputs, response_mask, entropy=entropy)


@final
class TeacherPolicy(nn.Module):
    """A causal language model that returns all of its distributions.

    Args:
        policy: the model, and how its logits become log-probabilities.
    """

    def __init__(self, policy: CausalPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: TextInputs, response_mask: Tensor) -> Tensor:
        """Return log-probabilities [N, V] of every token at the N responses of the mask."""
        model = self.policy.model
        hidden = hidden_states(body_of(model), inputs)[:, :-1]
        head = cast(nn.Linear, model.get_output_embeddings())
        return self.policy.scorer.every(head, hidden[response_mask])


def _check_long_row(model: PreTrainedModel, longest: int | None) -> None:
    """Compare a row alone with the same row batched with the last tokens of a long one."""
    body = body_of(model)
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return
    if longest is None:
        limit = rope_limit(model.config)
        longest = longest_sequence(model.config) if limit is None else limit + 1
    end = min(longest, FARTHEST)
    near = torch.arange(LONG_ROW, device=model.device)
    positions = torch.stack([near, near + max(0, end - LONG_ROW)])
    tokens = near.expand(2, -1) % model.config.get_text_config().vocab_size

    def states(rows: int) -> Tensor:
        arguments = {"attention_mask": torch.ones_like(tokens[:rows]), "use_cache": False}
        return body(input_ids=tokens[:rows], position_ids=positions[:rows], **arguments)[0][0]

    alone = states(1).float()
    difference = float((states(2).float() - alone).abs().max() / alone.abs().max())
    if not difference <= PROBE_TOLERANCE:
        raise ConfigError(
            f"{type(model).__name__} computes a row differently beside a row of {end} tokens "
            f"(hidden states move by {difference:.2g} of their size), as where RoPE depends on the "
            "longest row of a batch. Lower generation.max_prompt_tokens or "
            "generation.max_new_tokens, or choose a model of another family."
        )


@torch.no_grad()
def check_head(policy: CausalPolicy, *, longest: int | None = None) -> None:
    """Compare a few log-probabilities, left-padded, with the model's own logits on the row alone.

    Args:
        policy: the policy, whose weights are there.
        longest: tokens of the longest row it will be given; None: any that it computes.

    Raises:
        ConfigError: they differ: a head or a padding rule of this architecture is not known here;
            or a row of `longest` tokens changes what is computed of the rows beside it.
    """
    _check_long_row(policy.model, longest)
    model, temperature = policy.model, policy.scorer.temperature
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 9, device=model.device).unsqueeze(0) % vocab_size
    logits = model(input_ids=tokens, use_cache=False).logits.float() / temperature
    logits = without(logits, policy.scorer.absent)
    expected = logits.log_softmax(-1)[:, 1:-1].gather(-1, tokens[:, 2:, None]).squeeze(-1)
    padded = TextInputs(
        tokens=nn.functional.pad(tokens, (3, 0)),
        attention_mask=nn.functional.pad(torch.ones_like(tokens).bool(), (3, 0)),
        num_prompt=5,
    )
    got = policy(padded, torch.ones_like(expected, dtype=torch.bool)).logprobs
    apart = torch.where(got == expected, 0.0, (got - expected).abs())  # -inf of absent ids
    difference = float(apart.max())
    if not difference <= PROBE_TOLERANCE:
        raise ConfigError(
            f"{type(model).__name__} computes its logits in a way that is not known here: on a "
            f"padded row log-probabilities differ from the model's own by {difference:.2g}. "
            "Choose a model of another family."
        )
