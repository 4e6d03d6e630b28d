"""What TRL 1.12's PPO makes of a rollout, from the same tensors: loss, gradients, returns.

pip install --target DIR --no-deps trl==1.12.0
PYTHONPATH=DIR pytest -m peers tests/unit/trainers/test_trl_ppo.py

Its values are masked one position later than its actions, and the score is paid there, behind the
end token. So values and returns are compared where no row ends before the others.
"""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import tiny
from trainers import ppo
from trainers.batch import Experience, Rollout, TextInputs
from trainers.models.chat import train_tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
VOCAB, ROWS, PROMPT, RESPONSE = 400, 8, 5, 6
ENDS = (1, 6, 3, 2, 6, 4, 5, 1)
"""Tokens of the ragged responses, the end token included; one of the maximum has none."""
KL, GAMMA, LAMBDA = 0.05, 0.9, 0.8
KEPT = (
    *("query_responses", "logprobs", "values", "rewards", "advantages", "returns"),
    *("padding_mask", "pg_loss_stats", "vf_loss_stats"),
)


class Scorer(nn.Module):
    """A reward model whose score is a function of a row's last token."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body = Body()

    def score(self, hidden):
        return hidden % 7 / 7


class Body(nn.Module):
    def forward(self, input_ids, **_):
        return SimpleNamespace(hidden_states=[input_ids.float()[..., None]])


def value_model():
    """A Llama that classifies into one class, its head away from zero."""
    from transformers import LlamaForSequenceClassification  # noqa: PLC0415 - as the trainer

    model = LlamaForSequenceClassification(copy.deepcopy(tiny.llama(vocab_size=VOCAB).config))
    model.model = copy.deepcopy(tiny.llama(vocab_size=VOCAB, seed=1).model)
    model.score = nn.Linear(32, 1, bias=False)
    return model


def settings(folder):
    """One iteration of one step on all rows, as a run of ours with these figures."""
    from trl.experimental.ppo import PPOConfig  # noqa: PLC0415 - where it is installed

    return PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        local_rollout_forward_batch_size=ROWS,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=ROWS,
        response_length=RESPONSE,
        stop_token="eos",
        temperature=1.0,
        kl_coef=KL,
        gamma=GAMMA,
        lam=LAMBDA,
        num_sample_generations=0,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def theirs(folder, lengths):
    """A step of TRL's trainer: its tensors, its gradients, and the weights before it."""
    from transformers import LogitsProcessorList, TrainerCallback  # noqa: PLC0415
    from trl.experimental.ppo import PPOTrainer  # noqa: PLC0415 - where it is installed

    from scripts.bench.workers.planting import PlantedEnds  # noqa: PLC0415

    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    policy, value = tiny.llama(vocab_size=VOCAB), value_model()
    before = copy.deepcopy((policy, value))
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, *_, **__):
            frames = (frame.frame for frame in inspect.stack())
            train = next(frame for frame in frames if "padding_mask_p1" in frame.f_locals)
            kept.update({name: train.f_locals[name].clone() for name in KEPT})

    ends = PlantedEnds(
        lengths, longest=RESPONSE, eos=tokenizer.eos_token_id, banned=[tokenizer.pad_token_id]
    )
    generate = policy.generate
    policy.generate = lambda *args, **kwargs: generate(
        *args, **kwargs, logits_processor=LogitsProcessorList([ends])
    )
    prompts = torch.randint(20, 270, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in prompts.tolist()]
    trainer = PPOTrainer(
        args=settings(folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=tiny.llama(vocab_size=VOCAB, seed=2),
        reward_model=Scorer(),
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[Keep()],
    )
    backward = trainer.accelerator.backward

    def keep_gradients(loss):
        backward(loss)
        kept["policy"] = {n: p.grad.clone() for n, p in policy.named_parameters()}
        kept["critic"] = {n: p.grad.clone() for n, p in value.named_parameters()}

    trainer.accelerator.backward = keep_gradients
    trainer.train()
    return SimpleNamespace(**kept, before=before, vf_coef=trainer.args.vf_coef)


def inputs_of(step):
    """The rows and the mask [B, T] of their actions."""
    mask = ~step.padding_mask
    real = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.bool), mask], 1)
    tokens = step.query_responses
    return TextInputs(tokens=tokens, attention_mask=real, num_prompt=PROMPT), mask


def our_update(step):
    """Metrics and gradients of our update on their tensors, from the weights they started at."""
    config = tiny.settings(
        num_epochs=1, learning_rate=0.0, critic_learning_rate=0.0, max_grad_norm=None,
        old_logprobs="recompute", new=RESPONSE,
    )  # fmt: skip
    policy, value = step.before
    learner = tiny.learner(config, model=policy)
    critic = learner.critic_module
    critic.model.load_state_dict({**value.state_dict(), "score.bias": torch.zeros(1)})
    inputs, mask = inputs_of(step)
    made = Experience(
        inputs=inputs,
        response_mask=mask,
        old_logprobs=step.logprobs * mask,
        old_values=step.values * mask,
        advantages=step.advantages * mask,
        returns=step.returns * mask,
        index=torch.arange(ROWS),
    )
    gradients = tiny.gradients_of(learner, made, config)
    return ppo.update(learner, made, config).values(), gradients


def renamed(theirs, names):
    """Their gradients under our names, where ours are."""
    return {name: theirs[other] for name, other in names.items()}


@pytest.mark.parametrize("lengths", [(RESPONSE,) * ROWS, ENDS], ids=["full", "ragged"])
def test_policy_loss_and_gradient_are_theirs(lengths, tmp_path):
    step = theirs(tmp_path, lengths)
    figures, gradients = our_update(step)
    assert (~step.padding_mask).sum(1).tolist() == list(lengths)
    assert figures["loss/policy_avg"] == pytest.approx(float(step.pg_loss_stats), abs=1e-6)
    ours = {name: grad for name, grad in gradients.items() if name.startswith("policy.")}
    names = {name: name.removeprefix("policy.model.") for name in ours}
    assert tiny.difference(ours, renamed(step.policy, names)) < 1e-5


def test_value_loss_and_gradient_are_theirs_where_no_row_ends_early(tmp_path):
    step = theirs(tmp_path, (RESPONSE,) * ROWS)
    figures, gradients = our_update(step)
    assert figures["loss/value_avg"] == pytest.approx(float(step.vf_loss_stats), abs=1e-6)
    ours = {
        name: grad * step.vf_coef
        for name, grad in gradients.items()
        if name.startswith("critic.") and "bias" not in name
    }
    names = {name: name.removeprefix("critic.model.") for name in ours}
    assert tiny.difference(ours, renamed(step.critic, names)) < 1e-5


def test_returns_and_advantages_are_theirs_up_to_bessels_correction(tmp_path):
    step = theirs(tmp_path, (RESPONSE,) * ROWS)
    inputs, mask = inputs_of(step)
    last = torch.zeros_like(mask)
    last[:, -1] = True
    made = ppo.make_experience(
        Rollout(
            inputs=inputs,
            response_mask=mask,
            logprobs=step.logprobs,
            rewards=step.rewards,
            values=step.values,
            next_values=torch.cat([step.values[:, 1:], torch.ones(ROWS, 1)], 1),
            terminated=last,
            boundary=last,
            index=torch.arange(ROWS),
        ),
        tiny.settings(gamma=GAMMA, gae_lambda=LAMBDA).ppo,
    )
    torch.testing.assert_close(made.returns, step.returns, rtol=1e-5, atol=1e-5)
    count = mask.sum()
    scaled = made.advantages * ((count - 1) / count).sqrt()
    torch.testing.assert_close(scaled, step.advantages, rtol=1e-4, atol=1e-5)
