import math
from dataclasses import replace

import pytest
import torch

from trainers.batch import TextInputs
from trainers.collect.episodes import Episodes
from trainers.collect.reward_shaping import RewardShaper, RunningMoments, Unshaped, last_true
from trainers.config.ppo import PPOConfig


def episodes(rewards, ends, *, own=None, owner=None, **flags):
    """Rows of rewards [B, T]; `cut` episodes were truncated at their token limit.

    `flags` are one a episode: `cut`, `single` (default 1), `valid` (1), `scored`, `unscored`.
    """
    count = len(rewards) if owner is None else max(owner) + 1
    default = {"cut": 0, "single": 1, "valid": 1, "scored": 0, "unscored": 0}
    assert flags.keys() <= default.keys()
    given = {
        name: torch.tensor(flags.get(name) or [value] * count).bool()
        for name, value in default.items()
    }
    paid = torch.tensor(rewards, dtype=torch.float64)
    owner = torch.arange(count) if owner is None else torch.tensor(owner)
    tokens = torch.ones(len(paid), paid.shape[1] + 1, dtype=torch.long)
    played = Episodes(
        inputs=TextInputs(tokens=tokens, attention_mask=tokens.bool(), num_prompt=1),
        sampled=torch.ones_like(paid, dtype=torch.bool),
        generator_logprobs=torch.zeros_like(paid),
        rewards=paid,
        env_rewards=torch.tensor(own or [[0.0] * len(row) for row in rewards]).double(),
        owner=owner,
        turn_ends=torch.tensor(ends, dtype=torch.bool),
        valid=given["valid"],
        terminated=~given["cut"],
        truncated=given["cut"],
        index=owner,
        slots=(),
    )
    return Unshaped(
        episodes=played,
        out_of_tokens=given["cut"],
        single_turn=given["single"],
        scored_at_end=given["scored"],
        unscored=given["unscored"],
    )


def shaped(config, *args, **kwargs):
    return RewardShaper(PPOConfig(**config)).shape(episodes(*args, **kwargs))


def test_the_order_is_clip_then_scale_then_missing_end_then_placement_then_kl():
    settings = {"reward_clip": 2.0, "reward_scale": 3.0, "missing_eos_penalty": 0.5, "kl_coef": 0.1}
    shaper = RewardShaper(PPOConfig(**settings))
    # One row: 5 -> clipped 2 -> scaled 6 -> less 0.5 -> on action 1 of 2, action 2 is padding.
    result = shaper.shape(episodes([[0.0, 5.0, 0.0]], [[0, 1, 0]], cut=[1]))
    rewards = shaper.penalize(result.rewards, torch.tensor([[1.0, -2.0, 0.0]]))

    # Clip after scale would give 2, penalty before scale 4.5, a clamped KL would give 5.5 there.
    expected = torch.tensor([[-0.1, 6.0 - 0.5 + 0.2, 0.0]])
    torch.testing.assert_close(rewards, expected)
    assert result.clipped == (1.0, 1.0)


def test_clipping_comes_before_the_batch_statistics():
    settings = {"reward_clip": 1.0, "reward_normalize": "batch", "reward_scale": 2.0}
    result = shaped(settings, [[9.0], [-1.0]], [[1], [1]])  # clipped to 1, -1: mean 0, std 1

    torch.testing.assert_close(result.rewards, torch.tensor([[2.0], [-2.0]]))


def test_batch_normalization_is_of_the_valid_episodes_scores():
    result = shaped(
        {"reward_normalize": "batch"}, [[1.0], [3.0], [100.0]], [[1]] * 3, valid=[1, 1, 0]
    )

    torch.testing.assert_close(result.rewards[:2], torch.tensor([[-1.0], [1.0]]))


def test_the_turns_of_an_episode_add_up_to_its_normalized_score():
    rewards = [[1.0, 0.0, 2.0, 0.0], [0.0, 7.0, 0.0, 0.0]]
    ends = [[1, 0, 1, 0], [1, 1, 0, 0]]
    result = shaped({"reward_normalize": "batch"}, rewards, ends)  # scores 3 and 7: mean 5, std 2

    torch.testing.assert_close(result.rewards.sum(1), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(result.rewards[0], torch.tensor([0.5, 0.0, -1.5, 0.0]))


def test_equal_scores_are_normalized_without_nan():
    batch = shaped({"reward_normalize": "batch"}, [[2.0], [2.0]], [[1], [1]])
    running = shaped({"reward_normalize": "running"}, [[2.0], [2.0]], [[1], [1]])

    assert batch.rewards.tolist() == [[0.0], [0.0]]
    assert running.rewards.tolist() == [[2.0], [2.0]]


def test_running_normalization_divides_by_the_deviation_of_all_scores_so_far():
    shaper = RewardShaper(PPOConfig(reward_normalize="running"))
    first, second = [1.0, 3.0], [10.0, -2.0, 4.0]

    one = shaper.shape(episodes([[x] for x in first], [[1]] * 2))
    two = shaper.shape(episodes([[x] for x in second], [[1]] * 3))

    seen = torch.tensor(first + second, dtype=torch.float64)
    wanted = torch.tensor(second) / seen.std(unbiased=False).float()
    torch.testing.assert_close(one.rewards[:, 0], torch.tensor([1.0, 3.0]))  # deviation 1
    torch.testing.assert_close(two.rewards[:, 0], wanted)
    assert (two.rewards[:, 0] > 0).tolist() == [True, False, True]


def test_moments_over_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    values = torch.randn(100, dtype=torch.float64) * 3 + 1e6
    moments = RunningMoments()
    for part in values.split([1, 0, 30, 69]):
        moments.update(part)

    assert moments.count == 100
    assert math.isclose(moments.mean, float(values.mean()), rel_tol=1e-12)
    assert math.isclose(moments.std, float(values.std(unbiased=False)), rel_tol=1e-9)


def test_the_shaper_goes_on_from_its_state_bit_for_bit():
    settings = {"reward_normalize": "running", "kl_controller": "adaptive"}
    shaper, other = RewardShaper(PPOConfig(**settings)), RewardShaper(PPOConfig(**settings))
    shaper.shape(episodes([[1.0], [4.0]], [[1]] * 2))
    shaper.controller.update(20.0, 64)
    assert shaper.controller.coef != other.controller.coef

    other.load_state_dict(shaper.state_dict())

    more = episodes([[3.0], [0.1]], [[1]] * 2)
    assert torch.equal(shaper.shape(more).rewards, other.shape(more).rewards)
    assert other.controller.coef == shaper.controller.coef


def test_the_missing_end_penalty_is_for_one_turn_answers_only():
    settings = {"missing_eos_penalty": 1.0, "on_truncation": "score"}
    result = shaped(settings, [[2.0], [2.0], [2.0]], [[1]] * 3, cut=[1, 1, 0], single=[1, 0, 1])

    assert result.rewards[:, 0].tolist() == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("mode", "single", "terminated", "reward", "keep"),
    [
        ("auto", 1, True, 2.0, True),
        ("auto", 0, False, 2.0, True),
        ("score", 0, True, 2.0, True),
        ("bootstrap", 1, False, 2.0, True),
        ("penalty", 1, True, -3.0, True),
        ("mask", 1, False, 2.0, False),
    ],
)
def test_on_truncation_decides_how_a_cut_episode_ends(mode, single, terminated, reward, keep):
    settings = {"on_truncation": mode, "truncation_penalty": -3.0}
    rewards, ends = [[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]], [[0, 1, 0], [1, 0, 0]]

    result = shaped(settings, rewards, ends, cut=[1, 0], single=[single, single])

    # Row 0 was cut, row 1 ended by itself and is the same in every mode.
    assert result.terminated.tolist() == [[False, terminated, False], [True, False, False]]
    assert result.boundary.tolist() == [[False, True, False], [True, False, False]]
    assert result.rewards.tolist() == [[0.0, reward, 0.0], [2.0, 0.0, 0.0]]
    assert result.keep.tolist() == [keep, True]


@pytest.mark.parametrize(("mode", "left"), [("bootstrap", 0.0), ("score", 7.0)])
def test_a_final_score_and_a_bootstrap_are_not_paid_both(mode, left):
    result = shaped({"on_truncation": mode}, [[3.0, 7.0]], [[1, 1]], cut=[1], scored=[1])

    assert result.rewards.tolist() == [[3.0, left]]


@pytest.mark.parametrize(
    ("mode", "left"),
    [("bootstrap", [1.0, 0.0, 0.5]), ("penalty", [1.0, 0.0, -3.0]), ("score", [1.0, 4.0, 2.0])],
)
def test_of_the_last_turn_of_a_cut_episode_only_what_the_world_paid_is_beside_its_value(mode, left):
    # Turn 0 ends on action 0; turn 1 has a span of the final score on action 1 and ends on 2.
    result = shaped(
        {"on_truncation": mode, "truncation_penalty": -3.0},
        [[1.0, 4.0, 2.0]],
        [[1, 0, 1]],
        cut=[1],
        scored=[1],
        own=[[1.0, 0.0, 0.5]],
    )

    assert result.rewards.tolist() == [left]


def test_a_cut_episode_that_nobody_scored_is_no_zero():
    for mode, keep in (("score", False), ("bootstrap", True), ("penalty", True), ("mask", False)):
        result = shaped({"on_truncation": mode}, [[1.0]], [[1]], cut=[1], scored=[1], unscored=[1])
        assert result.keep.tolist() == [keep], mode


def test_an_episode_of_several_rows_ends_once_and_is_normalized_as_a_whole():
    rewards = [[1.0, 0.0], [0.0, 2.0], [7.0, 0.0], [0.0, 0.0]]
    ends = [[1, 0], [0, 1], [1, 0], [0, 0]]  # the last row is a state without actions
    result = shaped({"reward_normalize": "batch"}, rewards, ends, owner=[0, 0, 1, 1], cut=[0, 1])

    assert result.boundary.tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]
    assert result.terminated.tolist() == result.boundary.tolist()
    # Scores 3 and 7: mean 5, deviation 2; the shift falls on the episode's end.
    wanted = torch.tensor([[0.5, 0.0], [0.0, -1.5], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(result.rewards, wanted)
    masked = shaped({"on_truncation": "mask"}, rewards, ends, owner=[0, 0, 1, 1], cut=[1, 0])
    assert masked.keep.tolist() == [False, False, True, True]
    invalid = shaped({}, rewards, ends, owner=[0, 0, 1, 1], valid=[0, 1])
    assert invalid.keep.tolist() == [False, False, True, True]


def test_termination_wins_over_truncation():
    both = episodes([[1.0]], [[1]], cut=[1], single=[0])
    played = both.episodes
    both = replace(both, episodes=replace(played, terminated=played.valid))

    assert RewardShaper(PPOConfig()).shape(both).terminated.tolist() == [[True]]


def test_invalid_rows_and_rows_without_actions_are_not_kept_or_marked():
    result = shaped({}, [[0.0, 1.0], [0.0, 0.0]], [[0, 1], [0, 0]], valid=[0, 0])

    assert result.keep.tolist() == [False, False]
    assert result.boundary[1].tolist() == [False, False]
    assert result.clipped == (0.0, 0.0)


def test_only_the_last_mark_of_a_row_is_last():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)

    assert last_true(mask).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
