"""A critic that reads the surprisal of the policy's own tokens."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from tests.unit.trainers.models.families import family_model, ragged_inputs
from trainers.errors import ConfigError
from trainers.export.folders import export_critic
from trainers.models.critic import SharedActorCritic, surprisal
from trainers.models.critic_folders import build_critic, critic_outline

KINDS = ["separate", "shared"]


def critic_of(kind, *, reads=True):
    """A critic whose head is away from zero."""
    model = family_model("llama")
    critic = (
        build_critic(model, reads_logprobs=reads)
        if kind == "separate"
        else SharedActorCritic(model, temperature=1.0, chunk=512, reads_logprobs=reads)
    )
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(2))
    return critic


def values_of(critic, inputs):
    """Values [B, T + 1]."""
    with torch.no_grad():
        if isinstance(critic, SharedActorCritic):
            return critic(inputs, inputs.attention_mask[:, inputs.num_prompt :]).values
        return critic(inputs)


def read_inputs():
    """Rows with log-probabilities of their actions."""
    inputs, mask = ragged_inputs()
    logprobs = -torch.rand(mask.shape, generator=torch.Generator().manual_seed(3)) * mask
    return replace(inputs, logprobs=logprobs)


def test_surprisal_is_of_the_tokens_before_each_state():
    odds = torch.tensor([[0.5, 0.25, 1.0]]).log()
    rows = [
        [0.0, 0.0, 0.0, 0.0],
        [1 - 1 / 2, 1 - 1 / 2, 1 - 1 / 2, math.log1p(math.log(2))],
        [1 - 1 / 8, 1 - 1 / 4, 1 - 1 / 4, math.log1p(math.log(8))],
        [1 - 1 / 8, 1 - 1 / 4, 0.0, math.log1p(math.log(8))],
    ]
    inputs = replace(ragged_inputs(num_actions=3, rows=1)[0], logprobs=odds)
    torch.testing.assert_close(surprisal(inputs), torch.tensor([rows]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", [0, 2])
def test_the_value_of_a_state_does_not_read_the_action_taken_in_it(kind, action):
    critic, inputs = critic_of(kind), read_inputs().rows(torch.tensor([0]))
    changed = inputs.logprobs.clone()
    changed[:, action] -= 1.0
    before, after = (
        values_of(critic, replace(inputs, logprobs=x)) for x in (inputs.logprobs, changed)
    )
    assert torch.equal(before[:, : action + 1], after[:, : action + 1])
    assert (before[:, action + 1] - after[:, action + 1]).abs().min() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_keeps_its_values_alone_and_trimmed(kind):
    critic, inputs = critic_of(kind), read_inputs()
    together = values_of(critic, inputs)
    for row in range(len(together)):
        alone = inputs.rows(torch.tensor([row]))
        alone = alone.narrowed(*alone.window())
        values = values_of(critic, alone)
        torch.testing.assert_close(
            values, together[row : row + 1, : values.shape[1]], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_the_whole_head_and_is_read_as_its_page_says(kind, tmp_path):
    critic, inputs = critic_of(kind), read_inputs().rows(torch.tensor([0]))
    export_critic(tmp_path / "critic", critic)
    values = values_of(critic, inputs)

    again = build_critic(family_model("llama"), str(tmp_path / "critic"), reads_logprobs=True)
    assert torch.equal(values_of(again, inputs), values)

    page = (tmp_path / "critic" / "README.md").read_text(encoding="utf-8")
    code = page.split("```python")[1].split("```")[0].replace('"critic', f'"{tmp_path}/critic')
    padded = torch.nn.functional.pad(inputs.logprobs, (inputs.num_prompt, 0))
    names = {"ids": inputs.tokens, "logprobs": padded}
    with torch.no_grad():
        exec(code, names)
    read = names["values"][:, inputs.num_prompt - 1 :]
    torch.testing.assert_close(read, values, atol=1e-5, rtol=0)
    assert AutoModel.from_pretrained(tmp_path / "critic").config.model_type == "llama"


def test_a_critic_that_reads_log_probabilities_is_refused_where_the_setting_is_off(tmp_path):
    export_critic(tmp_path / "critic", critic_of("separate"))
    for make in (build_critic, critic_outline):
        with pytest.raises(ConfigError, match=r"Set ppo\.critic_reads_logprobs true"):
            make(family_model("llama"), str(tmp_path / "critic"))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_critic_without_begins_to_read_them_from_what_it_says_now(tmp_path):
    inputs = read_inputs()
    first = critic_of("separate", reads=False)
    export_critic(tmp_path / "critic", first)
    wider = build_critic(family_model("llama"), str(tmp_path / "critic"), reads_logprobs=True)
    assert wider.head.weight.shape[1] == first.head.weight.shape[1] + 4
    torch.testing.assert_close(values_of(wider, inputs), values_of(first, inputs))
