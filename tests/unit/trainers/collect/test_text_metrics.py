import numpy as np
import pytest
import torch

from tests.unit.trainers.collect.tiny import (
    Actor,
    chat_format,
    collector_of,
    config,
    length_score,
    llama,
    policy,
    rollout_of,
    scripted,
    single_turn,
    written_by,
)
from trainers.batch import Experience
from trainers.collect.metrics import performance
from trainers.distributed.collectives import World
from trainers.models.causal_lm import CausalPolicy


@pytest.fixture(scope="module")
def chat():
    return chat_format()


def experience_of(rollout, advantages):
    return Experience(
        inputs=rollout.inputs,
        response_mask=rollout.response_mask,
        old_logprobs=rollout.logprobs,
        old_values=rollout.values,
        advantages=advantages,
        returns=advantages,
        index=rollout.index,
    )


def test_old_and_sampled_logprobs_agree_and_planted_noise_shows(chat):
    collector, rollout = rollout_of(chat)
    figures = collector.metrics().values()

    assert figures["policy/generator_logp_diff"] < 1e-5
    assert figures["policy/generator_logp_diff_max"] < 1e-4
    apart = (rollout.logprobs - rollout.generator_logprobs).abs()
    assert float(apart[rollout.response_mask].max()) < 1e-4

    end = chat.eos_token_ids[0]
    noisy = scripted(chat, {i: [[40, 41, end]] for i in range(4)}, logprob=0.25)
    collector = collector_of(chat, single_turn(length_score), noisy, config())
    rollout = collector.collect(Actor(policy(chat)), 0)
    planted = float((rollout.logprobs - 0.25).abs()[rollout.response_mask].mean())
    measured = collector.metrics().values()["policy/generator_logp_diff"]
    assert measured == pytest.approx(planted, rel=1e-6)
    assert planted > 1


def test_the_kl_penalty_and_its_metrics_are_per_action_and_per_episode(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40 + i, 41, end]] for i in range(4)}
    settings = config(ppo={"kl_placement": "reward", "kl_coef": 0.5})
    actor, other = Actor(policy(chat)), Actor(policy(chat, initializer_range=0.2))
    envs = single_turn(lambda sample: 2.0)
    collector = collector_of(chat, envs, scripted(chat, script), settings, reference=other)
    rollout = collector.collect(actor, 0)
    figures = collector.metrics().values()

    k1 = rollout.logprobs - rollout.ref_logprobs
    scores = torch.zeros(4, 3)
    scores[:, -1] = 2.0
    torch.testing.assert_close(rollout.rewards, scores - 0.5 * k1)
    kl = float(k1.sum()) / 4
    assert figures["objective/kl"] == pytest.approx(kl, rel=1e-5)
    assert figures["objective/kl_per_token"] == pytest.approx(kl / 3, rel=1e-5)
    assert figures["objective/non_score_reward"] == pytest.approx(-0.5 * kl, rel=1e-5)
    assert figures["objective/rlhf_reward"] == pytest.approx(2 - 0.5 * kl, rel=1e-5)
    assert figures["objective/kl_coef"] == 0.5
    assert [row["kl"] for row in collector.samples()] == pytest.approx(k1.sum(1).tolist())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_the_kl_takes_is_counted_by_the_estimator_that_takes_it(chat, estimator):
    end = chat.eos_token_ids[0]
    script = {i: [[40 + i, 41, end]] for i in range(4)}
    ppo = {"kl_placement": "reward", "kl_coef": 0.5, "kl_estimator": estimator}
    actor, other = Actor(policy(chat)), Actor(policy(chat, initializer_range=0.2))
    envs = single_turn(lambda sample: 2.0)
    made = config(ppo=ppo)
    collector = collector_of(chat, envs, scripted(chat, script), made, reference=other)
    rollout = collector.collect(actor, 0)
    figures = collector.metrics().values()

    paid = float(rollout.rewards.sum()) / 4
    assert figures["objective/rlhf_reward"] == pytest.approx(paid, rel=1e-5)
    assert figures["objective/non_score_reward"] == pytest.approx(paid - 2.0, rel=1e-5)


def test_the_peak_memory_of_a_gpu_is_reported_where_there_is_one(monkeypatch):
    assert "perf/gpu_gb" not in performance({"rollout": 1.0}, {}, world=World()).values()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    assert performance({"rollout": 1.0}, {}, world=World()).values()["perf/gpu_gb"] == 3.0


def test_calls_of_a_reward_that_were_repeated_are_counted(chat):
    end = chat.eos_token_ids[0]
    failures = iter([OSError("busy"), OSError("busy")])

    def busy_at_first(sample):
        for failure in failures:
            raise failure
        return 1.0

    script = {i: [[40, 41, end], [40, 41, end]] for i in range(4)}
    collector = collector_of(chat, single_turn(busy_at_first), scripted(chat, script), config())
    seen = []
    for iteration in (0, 1):
        collector.collect(Actor(policy(chat)), iteration)
        seen.append(collector.metrics().values()["rewards/retries"])
    assert seen == [8.0, 0.0], "two calls, of four responses each"


def test_the_kl_to_an_identical_reference_is_exactly_zero_at_any_temperature(chat):
    model = llama(chat)
    actor = Actor(CausalPolicy(model, temperature=0.6, chunk=3))
    twin = Actor(CausalPolicy(model, temperature=0.6, chunk=3))
    settings = config(ppo={"kl_placement": "reward"}, generation={"temperature": 0.6})
    generator = written_by(actor.policy_module, chat)
    envs = single_turn(length_score)
    collector = collector_of(chat, envs, generator, settings, reference=twin)
    collector.collect(actor, 0)
    figures = collector.metrics().values()

    assert figures["objective/kl"] == 0.0
    assert figures["policy/generator_logp_diff_max"] < 1e-4


def test_the_adaptive_controller_sees_nats_per_episode_and_acts_from_the_next_rollout(chat):
    end = chat.eos_token_ids[0]
    script = {i: [[40 + i, 41, end], [40 + i, 41, end]] for i in range(4)}
    settings = config(
        ppo={
            "kl_placement": "reward",
            "kl_coef": 1.0,
            "kl_controller": "adaptive",
            "kl_target": 1e-3,
            "kl_horizon": 40.0,
        }
    )
    actor, other = Actor(policy(chat)), Actor(policy(chat, initializer_range=0.2))
    envs = single_turn(length_score)
    collector = collector_of(chat, envs, scripted(chat, script), settings, reference=other)
    expected = 1.0
    for iteration in (0, 1):
        collector.collect(actor, iteration)
        figures = collector.metrics().values()
        assert figures["objective/kl_coef"] == pytest.approx(expected)
        expected *= 1 + (0.2 if figures["objective/kl"] > 1e-3 else -0.2) * 4 / 40


def test_a_constant_reward_has_no_spread_to_the_last_bit(chat):
    actor = Actor(policy(chat))
    generator = written_by(actor.policy_module, chat)
    collector = collector_of(chat, single_turn(lambda sample: 0.1), generator, config())
    collector.collect(actor, 0)
    assert collector.metrics().values()["objective/scores_std"] == 0.0


def test_metrics_are_those_of_a_flat_recount(chat):
    plain = {t: chat.tokenizer.convert_tokens_to_ids(t) for t in "ab"}
    a, b, end = plain["a"], plain["b"], chat.eos_token_ids[0]
    script = {0: [[a, b, a, b, a, end]], 1: [[a, end]], 2: [[a] * 8], 3: [[b, end]]}

    def parts(sample):
        return {"size": len(sample.response), "first": sample.response[:1] == "a"}

    def score(sample):
        return {name: float(value) for name, value in parts(sample).items()}

    settings = config(ppo={"reward_clip": 4.0})
    envs = single_turn(score, bounds=(0.0, 9.0))
    collector = collector_of(chat, envs, scripted(chat, script), settings)
    rollout = collector.collect(Actor(policy(chat)), 0)
    figures = collector.metrics().values()

    texts = ["ababa", "a", "aaaaaaaa", "b"]
    sizes = [len(text) for text in texts]
    scores = [len(text) + float(text[0] == "a") for text in texts]
    name = "env/llmgym/Arithmetic-v0"
    entropy = -float(rollout.logprobs[rollout.response_mask].sum()) / 4
    wanted = {
        "objective/scores": np.mean(scores),
        "objective/scores_std": np.std(scores),
        "objective/entropy": entropy,
        "rewards/size/mean": np.mean(sizes),
        "rewards/size/std": np.std(sizes),
        "rewards/first/mean": 0.75,
        "rewards/first/std": np.std([1, 1, 1, 0]),
        "rewards/clipped_frac": 0.5,
        "rewards/errors": 0,
        f"{name}/reward": np.mean(scores),
        f"{name}/length": 1,
        f"{name}/success": 0.25,
        f"{name}/terminated_frac": 0.75,
        f"{name}/truncated_frac": 0.25,
        f"{name}/truncated_prompts": 0,
        "completions/mean_length": (6 + 2 + 8 + 2) / 4,
        "completions/min_length": 2,
        "completions/max_length": 8,
        "completions/clipped_ratio": 0.25,
        "completions/eos_ratio": 0.75,
        "completions/unknown_ratio": 0.0,
        "completions/distinct_2": (3 + 1 + 1 + 1) / (5 + 1 + 7 + 1),
        "completions/repeat_4gram": (0 + 4) / (3 + 5),
        "perf/padding_frac": 1 - float(rollout.inputs.attention_mask.double().mean()),
        "train/episodes": 4,
        "train/tokens": 18,
    }
    for key, value in wanted.items():
        assert figures[key] == pytest.approx(float(value)), key
    phases = {key for key in figures if key.startswith("timing_s/")}
    assert phases == {f"timing_s/{x}" for x in ("sync", "rollout", "score", "logprobs", "values")}
    assert figures["perf/tokens_per_s"] == pytest.approx(figures["perf/samples_per_s"] * 18 / 4)
    assert 0.01 < figures["perf/cpu_gb"] < 100


def test_samples_have_their_rows_and_the_advantage_comes_with_the_experience(chat):
    collector, rollout = rollout_of(chat)
    advantages = torch.randn(rollout.rewards.shape)

    collector.record(experience_of(rollout, advantages))

    for row, figures, mask in zip(
        collector.samples(), advantages, rollout.response_mask, strict=True
    ):
        assert row["advantage"] == pytest.approx(float(figures[mask].mean()), abs=1e-6)
        assert row["length"] == int(mask.sum())
        assert {"env", "prompt", "completion", "reward", "kl", "finish_reason"} <= set(row)
