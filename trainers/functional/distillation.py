"""What a student's distribution of the next token makes of its teacher's: figures and losses.

    pi_S, pi_T   student and teacher at one state, over the vocabulary
    r(a)         clip(log pi_T(a) - log pi_S(a), +-c)        the reward of token a
    V            E_{a ~ pi_S} r(a)                           its mean; without c, -KL(pi_S || pi_T)
    A(a)         r(a) - V                                    the advantage under gamma = 0

V is exact, from the same pass, so A needs no critic and has mean 0 in every state.

Shapes: N tokens, D hidden, V vocabulary. Log-probabilities are of tempered distributions; -inf, of
an id that is never sampled, adds nothing where the student's is -inf as well.
"""

# torch's stubs leave `checkpoint` and `split` partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers.batch import Inputs
from trainers.functional.logprobs import (
    LEAST,
    Absent,
    chunk_of,
    entropy_of,
    tempered_logits,
)

Figures = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes log-probabilities [N, V] of the student and of the teacher and the tokens [N]; returns K
figures of each token, [N, K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What a student's forward compares its distributions with.

    Attributes:
        logprobs: [N, V] of the teacher, at the N actions of a mask [B, T] in its order.
        figures: what is made of both.
    """

    logprobs: Float[Tensor, "N V"]
    figures: Figures


class TeacherModel(Protocol):
    """A frozen model whose distributions a student learns."""

    packed_up_to: float
    """Tokens of the longest row that it reads packed."""

    def every_logprob(self, inputs: Inputs, response_mask: Tensor) -> Tensor:
        """Return log-probabilities [N, V] of every token at the N actions of a mask [B, T]."""
        ...


class TeacherComparison(NamedTuple):
    """Both models at sampled actions, [B, T] each, 0 elsewhere.

    Attributes:
        logprobs: of the action, under the student.
        teacher_logprobs: of the action, under the teacher.
        expected: E_{a ~ student} of the clipped log-ratio.
        reverse_kl: KL(student || teacher) in nats, exact.
        forward_kl: KL(teacher || student) in nats, exact.
    """

    logprobs: Tensor
    teacher_logprobs: Tensor
    expected: Tensor
    reverse_kl: Tensor
    forward_kl: Tensor


def clipped(log_ratio: Tensor, clip: float | None) -> Tensor:
    """Return log-ratios [...] within +- `clip`; all of them where it is None."""
    return log_ratio if clip is None else log_ratio.clamp(-clip, clip)


def _ratio(student: Tensor, teacher: Tensor) -> Tensor:
    """Return log teacher - log student, 0 where neither gives a token any probability."""
    return teacher.clamp(min=LEAST) - student.clamp(min=LEAST)


def kl_divergence(
    logprobs: Float[Tensor, "N V"], others: Float[Tensor, "N V"]
) -> Float[Tensor, " N"]:
    """Return KL(p || q) [N] in nats, exact over the vocabulary, from log p and log q."""
    return (logprobs.exp() * -_ratio(logprobs, others)).sum(-1)


def compare(
    student: Float[Tensor, "N V"],
    teacher: Float[Tensor, "N V"],
    tokens: Int[Tensor, " N"],
    *,
    clip: float | None,
) -> Float[Tensor, "N 5"]:
    """Return the figures of `TeacherComparison`, in its order.

    Args:
        student: [N, V] log-probabilities.
        teacher: [N, V] log-probabilities.
        tokens: [N] that were sampled.
        clip: bound of the log-ratio in its mean; None: none.

    Source: Agarwal et al. 2023, arXiv:2306.13649; the baseline of mean 0 that is known without a
    critic: arXiv:2605.07865.
    """
    chosen = tokens.unsqueeze(-1)
    ratio, shares = _ratio(student, teacher), student.exp()
    return torch.stack(
        [
            student.gather(-1, chosen).squeeze(-1),
            teacher.gather(-1, chosen).squeeze(-1),
            (shares * clipped(ratio, clip)).sum(-1),
            -(shares * ratio).sum(-1),
            (teacher.exp() * ratio).sum(-1),
        ],
        dim=-1,
    )


def jensen_shannon(
    student: Float[Tensor, "N V"], teacher: Float[Tensor, "N V"], beta: float
) -> Float[Tensor, " N"]:
    """Return the generalized Jensen-Shannon divergence [N] of teacher and student, in nats.

        M = beta pi_T + (1 - beta) pi_S
        JSD = beta KL(pi_T || M) + (1 - beta) KL(pi_S || M)        0 < beta < 1
            = KL(pi_T || pi_S)                                     beta = 0
            = KL(pi_S || pi_T)                                     beta = 1

    The last two are the limits of JSD / beta and of JSD / (1 - beta).

    Args:
        student: log-probabilities, through which gradients flow.
        teacher: log-probabilities.
        beta: the teacher's share, in [0, 1].

    Source: Agarwal et al. 2023, arXiv:2306.13649, eq. 1.
    """
    if beta == 0.0:
        return kl_divergence(teacher, student)
    if beta == 1.0:
        return kl_divergence(student, teacher)
    student, teacher = student.clamp(min=LEAST), teacher.clamp(min=LEAST)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    of_teacher = kl_divergence(teacher, mixture)
    return beta * of_teacher + (1.0 - beta) * kl_divergence(student, mixture)


def direct_figures(
    student: Float[Tensor, "N V"],
    teacher: Float[Tensor, "N V"],
    tokens: Int[Tensor, " N"],
    *,
    beta: float,
) -> Float[Tensor, "N 4"]:
    """Return the divergence, with a gradient; both KL and the student's entropy, without.

    Args:
        student: [N, V] log-probabilities.
        teacher: [N, V] log-probabilities.
        tokens: [N], not read: the divergence is of all tokens.
        beta: of `jensen_shannon`.
    """
    del tokens
    still = student.detach()
    return torch.stack(
        [
            jensen_shannon(student, teacher, beta),
            kl_divergence(still, teacher),
            kl_divergence(teacher, still),
            entropy_of(still),
        ],
        dim=-1,
    )


def fitted(logprobs: Float[Tensor, "N W"], width: int) -> Float[Tensor, "N V"]:
    """Return log-probabilities [N, V] of `width` ids, -inf of those that the model does not embed.

    Of a larger model only ids that have none are left out (padding of the vocabulary).
    """
    missing = width - logprobs.shape[-1]
    if missing <= 0:
        return logprobs[:, :width]
    return torch.nn.functional.pad(logprobs, (0, missing), value=-math.inf)


def every_logprob(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    softcap: float | None = None,
    absent: Absent = (),
) -> Float[Tensor, "N V"]:
    """Return log-probabilities [N, V] of every token, float32; the arguments of `linear_logprobs`.

    All [N, V] of them exist at once: as many bytes as 4 N V.
    """
    chunk = chunk_of(weight.shape[0]) if chunk is None else chunk
    parts = [
        tempered_logits(
            states, weight, bias, temperature=temperature, softcap=softcap, absent=absent
        ).log_softmax(-1)
        for states in hidden.split(chunk)
    ]
    return torch.cat(parts)


def _figures_of_chunk(
    hidden: Tensor,
    teacher: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    figures: Figures,
    temperature: float,
    softcap: float | None,
    absent: Absent,
) -> Tensor:
    logits = tempered_logits(
        hidden, weight, bias, temperature=temperature, softcap=softcap, absent=absent
    )
    return figures(logits.log_softmax(-1), teacher, tokens)


def linear_figures(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    tokens: Int[Tensor, " N"],
    against: Against,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    softcap: float | None = None,
    absent: Absent = (),
) -> Float[Tensor, "N K"]:
    """Return what `against.figures` makes of the student's distributions and the teacher's.

    The student's [N, V] is made in chunks, and again in the backward pass, as `linear_logprobs`
    makes it; the arguments are its own.
    """
    chunk = chunk_of(weight.shape[0]) if chunk is None else chunk
    run = partial(
        _figures_of_chunk,
        figures=against.figures,
        temperature=temperature,
        softcap=softcap,
        absent=absent,
    )
    if hidden.shape[0] > chunk and torch.is_grad_enabled():
        run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    parts = zip(
        hidden.split(chunk), against.logprobs.split(chunk), tokens.split(chunk), strict=True
    )
    made = [cast(Tensor, run(*part, weight, bias)) for part in parts]
    return torch.cat(made)
