"""On-policy distillation at the learner: what a teacher pays, and the gradient that follows."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from trainers.batch import TextInputs
from trainers.collect.teaching import lesson_of, teacher_metrics
from trainers.distillation import direct
from trainers.functional.distillation import jensen_shannon, kl_divergence
from trainers.learner import Teacher
from trainers.models.causal_lm import CausalPolicy, TeacherPolicy
from trainers.ppo import make_experience, update

TAUGHT = {"critic": "none", "advantage": "teacher", "kl_placement": "none"}
RATES = {"learning_rate": 1e-2}


def settings(*, method="ppo", tokens=1_000_000, coef=1.0, clip=None, beta=0.5, **ppo):
    """Settings of a distillation."""
    distill = {"teacher": "t", "method": method, "coef": coef, "clip": clip, "beta": beta}
    return tiny.settings(tokens=tokens, distill=distill, **{**TAUGHT, **RATES, **ppo})


def teacher_of(model=None, *, temperature=1.0, seed=5):
    """A teacher of another width than the student."""
    model = model or tiny.llama(seed=seed, hidden_size=48, num_attention_heads=4)
    policy = CausalPolicy(model, temperature=temperature, chunk=512)
    return Teacher(TeacherPolicy(policy), tiny.VOCAB, device=tiny.CPU, autocast=None)


def naive(model, inputs, mask, temperature=1.0):
    """Log-probabilities [N, V] at the actions, by transformers' own logits, row by row."""
    tables = []
    for row, real in enumerate(inputs.attention_mask):
        tokens = inputs.tokens[row, real].unsqueeze(0)
        count = int(mask[row].sum())
        before = slice(tokens.shape[1] - count - 1, tokens.shape[1] - 1)
        logits = model(input_ids=tokens).logits[0, before].double() / temperature
        tables.append(logits.log_softmax(-1))
    return torch.cat(tables)


def taught_rollout(learner, teacher, config, **changes):
    """A ragged rollout as the collector would have taught it."""
    made = tiny.rollout(**changes)
    both = learner.compared(teacher, made.inputs, made.response_mask, clip=config.distill.clip)
    lesson = lesson_of(both, made.response_mask, config.distill)
    mask = made.response_mask
    return replace(
        made,
        logprobs=both.logprobs,
        rewards=torch.zeros_like(made.rewards),
        values=None,
        next_values=None,
        teacher_rewards=lesson.rewards,
        teacher_values=lesson.values,
        inputs=replace(made.inputs, logprobs=None),
        response_mask=mask,
    )


@pytest.mark.parametrize("budget", [1000, 20])
@pytest.mark.parametrize("packs", [False, True])
def test_student_and_teacher_are_compared_as_their_own_logits_are(budget, packs):
    config = settings(tokens=budget)
    learner, teacher = (
        tiny.learner(config, temperature=0.7, packs=packs),
        teacher_of(temperature=0.7),
    )
    inputs = tiny.text(spare=(2, 3))
    mask = inputs.attention_mask[:, inputs.num_prompt :]
    with torch.no_grad():
        student = naive(learner.policy_module.model, inputs, mask, 0.7)
        other = naive(teacher._module.policy.model, inputs, mask, 0.7)
    both = learner.compared(teacher, inputs, mask, clip=1.0)
    chosen = inputs.actions[mask].unsqueeze(-1)
    expected = {
        "logprobs": student.gather(-1, chosen).squeeze(-1),
        "teacher_logprobs": other.gather(-1, chosen).squeeze(-1),
        "expected": (student.exp() * (other - student).clamp(-1.0, 1.0)).sum(-1),
        "reverse_kl": (student.exp() * (student - other)).sum(-1),
        "forward_kl": (other.exp() * (other - student)).sum(-1),
    }
    for name, wanted in expected.items():
        got = getattr(both, name)
        torch.testing.assert_close(got[mask].double(), wanted, rtol=1e-4, atol=1e-5)
        assert float(got[~mask].abs().max()) == 0.0, "padding has no figures"
    metrics = teacher_metrics(both, mask, replace(config.distill, clip=1.0)).values()
    ratio = expected["teacher_logprobs"] - expected["logprobs"]
    assert metrics["distill/log_ratio"] == pytest.approx(float(ratio.mean()), abs=1e-5)
    share = float((ratio.abs() > 1.0).double().mean())
    assert 0 < metrics["distill/clipped_frac"] == pytest.approx(share)


def test_padding_that_nobody_reads_changes_nothing():
    config, teacher = settings(clip=2.0), teacher_of()
    learner = tiny.learner(config)
    plain, spare = (taught_rollout(learner, teacher, config, spare=s) for s in ((0, 0), (3, 2)))
    for name in ("teacher_rewards", "teacher_values"):
        one, other = getattr(plain, name), getattr(spare, name)
        torch.testing.assert_close(one, other[:, : one.shape[1]], rtol=1e-5, atol=1e-6)
        assert float(other[:, one.shape[1] :].abs().max()) == 0.0


def test_the_advantage_is_the_teacher_s_reward_less_its_mean_times_its_weight():
    config = settings(coef=0.3, clip=2.0)
    learner, teacher = tiny.learner(config), teacher_of()
    made = taught_rollout(learner, teacher, config)
    advantages = make_experience(made, config.ppo).advantages
    mask = made.response_mask
    both = learner.compared(teacher, made.inputs, mask, clip=2.0)
    ratio = (both.teacher_logprobs - both.logprobs).clamp(-2.0, 2.0)
    torch.testing.assert_close(advantages[mask], 0.3 * (ratio - both.expected)[mask])
    assert float(advantages[~mask].abs().max()) == 0.0


def test_the_task_and_the_teacher_add_up_and_the_task_alone_is_whitened():
    config = settings(coef=0.3, critic="separate", advantage="gae")
    learner, teacher = tiny.learner(config), teacher_of()
    taught = taught_rollout(learner, teacher, config)
    task = replace(tiny.rollout(), inputs=taught.inputs)
    both = replace(
        task, teacher_rewards=taught.teacher_rewards, teacher_values=taught.teacher_values
    )
    alone, mixed = (make_experience(one, config.ppo) for one in (task, both))
    lesson = taught.teacher_rewards - taught.teacher_values
    torch.testing.assert_close(mixed.advantages, alone.advantages + lesson)
    torch.testing.assert_close(mixed.returns, alone.returns)


def one_token_of_each(learner, teacher, config, prompt):
    """An experience with every token of the vocabulary as the only action after a prompt.

    Advantages are weighted by the student's probabilities, so that a mean over rows is V times
    smaller than the expectation.
    """
    width = len(prompt)
    tokens = torch.tensor([[*prompt, token] for token in range(tiny.VOCAB)])
    inputs = TextInputs(
        tokens=tokens, attention_mask=torch.ones_like(tokens, dtype=torch.bool), num_prompt=width
    )
    mask = torch.ones(tiny.VOCAB, 1, dtype=torch.bool)
    both = learner.compared(teacher, inputs, mask, clip=None)
    lesson = lesson_of(both, mask, config.distill)
    made = tiny.experience(
        inputs=inputs,
        response_mask=mask,
        old_logprobs=both.logprobs,
        ref_logprobs=None,
        generator_logprobs=None,
        old_values=None,
        returns=None,
        advantages=(lesson.rewards - lesson.values) * both.logprobs.exp() * tiny.VOCAB,
        index=torch.arange(tiny.VOCAB),
    )
    return inputs, mask, made


def test_the_first_step_of_ppo_follows_the_reverse_kl_to_the_teacher_exactly():
    config = settings(max_grad_norm=None)
    learner, teacher = tiny.learner(config), teacher_of()
    inputs, mask, made = one_token_of_each(learner, teacher, config, (3, 1, 4, 1, 5))
    got = tiny.gradients_of(learner, made, config)

    model = learner.policy_module.model
    one = replace(inputs.rows(slice(0, 1)))
    student = naive(model, one, mask[:1])
    with torch.no_grad():
        other = naive(teacher._module.policy.model, one, mask[:1])
    kl_divergence(student, other).sum().backward()
    assert tiny.difference(tiny.gradients(learner), got) < 1e-4


def test_a_student_that_is_its_teacher_does_not_move():
    config = settings(num_epochs=2)
    learner = tiny.learner(config)
    teacher = teacher_of(tiny.llama())
    before = tiny.weights(learner)
    made = taught_rollout(learner, teacher, config)
    made = make_experience(made, config.ppo)
    assert float(made.advantages.abs().max()) < 1e-5
    made = replace(made, advantages=made.advantages.where(made.advantages.abs() > 1e-5, 0.0))
    update(learner, made, config)
    assert tiny.difference(before, tiny.weights(learner)) == 0.0


@pytest.mark.parametrize(
    ("method", "beta", "budget"),
    [("gkd", 0.3, 1000), ("gkd", 0.3, 20), ("gkd", 1.0, 20), ("sft_kd", 0.5, 20)],
)
def test_a_direct_step_follows_the_mean_divergence_over_tokens(method, beta, budget, monkeypatch):
    config = settings(method=method, beta=beta, tokens=budget, max_grad_norm=None)
    learner, teacher = tiny.learner(config), teacher_of()
    inputs = tiny.text(spare=(1, 2))
    mask = inputs.attention_mask[:, inputs.num_prompt :]
    seen = {}
    engine = learner._policy
    monkeypatch.setattr(engine, "step", lambda: seen.update(tiny.gradients(learner)))
    columns = {"old_logprobs", "ref_logprobs", "generator_logprobs", "old_values"}
    wide = {name: torch.zeros(mask.shape) for name in columns | {"advantages", "returns"}}
    made = tiny.experience(inputs=inputs, response_mask=mask, **wide)
    figures = direct.direct_update(learner, teacher, made, config).values()
    learner.policy_module.zero_grad()

    student = naive(learner.policy_module.model, inputs, mask)
    with torch.no_grad():
        other = naive(teacher._module.policy.model, inputs, mask)
    loss = jensen_shannon(student, other, 0.0 if method == "sft_kd" else beta).mean()
    loss.backward()
    assert tiny.difference(tiny.gradients(learner), seen) < 1e-4
    assert figures["loss/distill"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert figures["distill/divergence"] == pytest.approx(float(loss.detach()), rel=1e-4)
    reverse = float(kl_divergence(student, other).mean().detach())
    assert figures["distill/reverse_kl"] == pytest.approx(reverse, rel=1e-4)


def test_the_gradient_does_not_depend_on_micro_batches():
    teacher, results = teacher_of(), []
    for budget in (1000, 20):
        config = settings(clip=2.0, tokens=budget)
        learner = tiny.learner(config)
        made = make_experience(taught_rollout(learner, teacher, config), config.ppo)
        results.append(tiny.gradients_of(learner, made, config))
    assert tiny.difference(*results) < 1e-5


def test_a_shared_trunk_is_compared_as_the_policy_alone():
    config = settings(critic="shared", advantage="gae")
    shared, alone, teacher = tiny.learner(config), tiny.learner(settings()), teacher_of()
    inputs = tiny.text()
    mask = inputs.attention_mask[:, inputs.num_prompt :]
    one, other = (made.compared(teacher, inputs, mask, clip=None) for made in (shared, alone))
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right)


def test_beta_is_that_of_the_method():
    betas = [direct.beta_of(settings(method=name, beta=0.7)) for name in ("gkd", "sft_kd")]
    assert betas == [0.7, 0.0]
