"""The advantages that TRL 1.16 learns from, for the same rewards.

pip install --target DIR --no-deps trl==1.16.0 datasets ...
PYTHONPATH=DIR pytest -m peers tests/unit/trainers/functional/test_trl_advantages.py
"""

import pytest
import torch

from tests import tiny
from trainers.functional.advantages import group_relative
from trainers.models.chat import train_tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
GROUP, PROMPTS = 4, 3
REWARDS = [
    *(1.0, 0.0, 0.0, 1.0),
    *(0.25, -3.0, 7.5, 0.25),
    *(2.0, 2.0, 2.0, 2.0),
]


def theirs(kind, folder, **settings):
    """The advantages [B] of one batch of TRL's trainer, and the rewards [B] they are of."""
    import datasets  # noqa: PLC0415 - where it is installed
    import trl  # noqa: PLC0415 - where it is installed

    tokenizer = train_tokenizer(["12 + 34 = 46"], 280)
    model = tiny.llama(vocab_size=max(tokenizer.get_vocab().values()) + 1)
    rewards = iter(REWARDS)

    def reward(completions, **_):
        return [next(rewards) for _ in completions]

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        max_completion_length=4,
        max_steps=1,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["1", "2", "3"]}),
        processing_class=tokenizer,
    )
    kept = {}
    scored = trainer._generate_and_score_completions

    def keep(inputs):
        output = scored(inputs)
        kept.setdefault("advantages", output["advantages"])
        return output

    trainer._generate_and_score_completions = keep
    trainer.train()
    return kept["advantages"].cpu()


def ours(**how):
    scores = torch.tensor(REWARDS)
    groups = torch.arange(PROMPTS).repeat_interleave(GROUP)
    return group_relative(scores, groups, torch.ones_like(groups, dtype=torch.bool), **how)


@pytest.mark.parametrize(
    ("kind", "settings", "how"),
    [
        ("GRPO", {"scale_rewards": "group"}, {"leave_one_out": False, "scale": True}),
        ("GRPO", {"scale_rewards": "none"}, {"leave_one_out": False, "scale": False}),
        ("RLOO", {}, {"leave_one_out": True, "scale": False}),
    ],
)
def test_they_are_ours(kind, settings, how, tmp_path):
    advantages = theirs(kind, tmp_path, **settings)
    torch.testing.assert_close(advantages, ours(**how), rtol=1e-5, atol=1e-6)
