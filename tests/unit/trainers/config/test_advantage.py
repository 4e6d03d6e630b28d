"""Estimators and critics that do not go together are refused, with what to set."""

import pytest

from trainers.config.files import read
from trainers.errors import ConfigError

NONE = {"ppo.critic": "none", "ppo.advantage": "rloo"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ppo.critic": "none"}, "gae reads the values of a critic, and ppo.critic is none. Set"),
        ({"ppo.advantage": "rloo"}, "rloo reads no critic, and ppo.critic is separate. Set"),
        ({"ppo.advantage": "grpo", "ppo.critic": "shared"}, "ppo.critic is shared. Set ppo.critic"),
        ({**NONE, "ppo.samples_per_prompt": 1}, "ppo.samples_per_prompt is 1. Set it to 2 or more"),
        ({**NONE, "ppo.gamma": 0.99}, "ppo.gamma must be 1, got 0.99. Set ppo.gamma 1, or"),
        (
            {**NONE, "ppo.on_truncation": "bootstrap"},
            "Set ppo.on_truncation score, penalty or mask",
        ),
        ({**NONE, "ppo.critic_warmup_iterations": 2}, "must be 0 when ppo.critic is none"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_set(settings, words):
    with pytest.raises(ConfigError) as caught:
        read([], settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "scales", "whitens", "size"),
    [
        ({}, False, True, 1),
        (NONE, False, False, 4),
        ({**NONE, "ppo.advantage": "grpo"}, True, False, 4),
        ({**NONE, "ppo.advantage": "grpo", "ppo.scale_advantages": False}, False, False, 4),
        ({**NONE, "ppo.whiten_advantages": True, "ppo.scale_advantages": True}, True, True, 4),
        ({"ppo.whiten_advantages": False}, False, False, 1),
    ],
)
def test_the_defaults_are_those_of_each_estimator(settings, scales, whitens, size):
    ppo = read([], settings).ppo
    assert (ppo.scales_advantages, ppo.whitens_advantages, ppo.group_size) == (
        scales,
        whitens,
        size,
    )
