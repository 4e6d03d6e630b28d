"""Ranks that share generation servers: one sends weights, all write, all learn of a loss."""

import torch

from tests import tiny
from tests.distributed.ranks import run_ranks
from tests.unit.trainers.generation.serving.fakes import Served, answer
from trainers.config import Config, GenerationConfig
from trainers.distributed.collectives import World
from trainers.errors import LostServerError
from trainers.generation.base import GeneratorParts, Request, Sampling
from trainers.generation.sampling import stream_seed
from trainers.generation.vllm import make_generator, together
from trainers.models.causal_lm import CausalPolicy


def written(urls):
    """Take weights twice and write with each; give what this rank wrote and how much it took."""
    world = World.from_launcher()
    policy = CausalPolicy(tiny.llama(), temperature=1.0, chunk=64)
    generation = GenerationConfig(engine="vllm", servers=urls)
    generator = make_generator(
        GeneratorParts(policy=policy, eos_token_ids=(7,), pad_token_id=0, batch_size=4,
                       config=Config(generation=generation), max_tokens=20)
    )  # fmt: skip
    taken, responses = [], []
    for version in range(2):
        named = (
            (taken.append(name) or name, torch.full((2,), version + 1.0))
            for name, _ in policy.named_parameters()
        )
        generator.load_weights(named, version)
        mine = [
            Request(token_ids=[1], index=2 * i + world.rank, max_new_tokens=2) for i in range(3)
        ]
        responses.append(generator.generate(mine, Sampling(seed=1)))
    generator.close()
    return taken, [[(list(r.token_ids), list(r.logprobs)) for r in part] for part in responses]


def test_ranks_share_servers_and_rank_0_alone_sends_weights():
    servers = [Served(takes_paths=False) for _ in range(2)]
    ranks = run_ranks(written, [served.url for served in servers])
    names = [name for name, _ in CausalPolicy(
        tiny.llama(), temperature=1.0, chunk=64).named_parameters()]  # fmt: skip
    for rank, (taken, parts) in enumerate(ranks):
        assert taken == names * 2  # every rank helps to gather every weight
        for version, part in enumerate(parts):
            seeds = [stream_seed(1, 0, 2 * i + rank, 0) for i in range(3)]
            assert part == [answer(seed, 2, version + 1.0) for seed in seeds]
    assert [served.engine.updates for served in servers] == [[0, 1]] * 2
    for served in servers:
        served.close()


def lost():
    """Lose the servers of rank 1 alone; give what this rank raises."""
    rank = World.from_launcher().rank

    def work():
        if rank == 1:
            raise LostServerError("no generation server is left")

    try:
        together(work)
    except LostServerError as error:
        return str(error)


def test_a_loss_on_one_rank_is_raised_on_all():
    assert run_ranks(lost) == ["no generation server is left"] * 2
