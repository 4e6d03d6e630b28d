import socket

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from trainers.batch import Metrics
from trainers.distributed.collectives import (
    World,
    barrier,
    broadcast,
    from_main,
    gather,
    global_max,
    global_metrics,
    global_moments,
    global_sum,
    start,
)
from trainers.errors import BackendError


def collectives(word):
    """What two ranks make of their numbers."""
    world = World.from_launcher()
    mine = torch.tensor([1.0, -2.0]) * (world.rank + 1)
    kept = mine.clone()
    asked = []
    results = {
        "word": word,
        "world": (world.rank, world.size, world.is_main, list(world.share(6))),
        "sum": global_sum(mine).tolist(),
        "max": global_max(mine).tolist(),
        "gather": gather({"rank": world.rank}),
        "broadcast": broadcast(f"from {world.rank}"),
        "from main": from_main(lambda: asked.append(world.rank) or f"from {world.rank}"),
        "asked": asked,
        "metrics": global_metrics(ragged(world.rank)),
        "moments": [float(figure) for figure in global_moments(*halves(world.rank))],
        "untouched": torch.equal(mine, kept),
    }
    barrier()
    return results


def ragged(rank):
    """Metrics of a rank; the names differ."""
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])[rank : rank + 1]
    mask = torch.tensor([[True, True, True], [True, False, False]])[rank : rank + 1]
    alone = {f"only/{rank}": 1.0}
    return Metrics.masked({"a": values}, mask) | Metrics(maxima={"m": float(rank)}, minima=alone)


def halves(rank):
    """Unequal parts of five numbers with a large mean, and one that does not count."""
    parts = ([1e8, 1e8 + 1], [1e8 + 2, 1e8 + 3, 1e8 + 4, torch.nan])
    values = torch.tensor([parts[rank]], dtype=torch.float64)
    return values, ~values.isnan()


def one_fails():
    """Rank 1 fails while rank 0 waits for it."""
    assert dist.get_rank() == 0, "on purpose"
    barrier()


@pytest.fixture(scope="module")
def both():
    return run_ranks(collectives, "hello")


def test_every_rank_knows_who_it_is_and_what_is_its_share(both):
    assert [one["word"] for one in both] == ["hello", "hello"]
    assert both[0]["world"] == (0, 2, True, [0, 1, 2])
    assert both[1]["world"] == (1, 2, False, [3, 4, 5])


def test_every_rank_gets_the_same_sums_and_extremes_and_keeps_its_own_figures(both):
    for one in both:
        assert one["sum"] == [3.0, -6.0]
        assert one["max"] == [2.0, -2.0]
        assert one["gather"] == [{"rank": 0}, {"rank": 1}]
        assert one["broadcast"] == "from 0"
        assert one["untouched"]


def test_metrics_of_ranks_are_pooled_by_count_whatever_their_names(both):
    assert both[0]["metrics"] == both[1]["metrics"]
    assert both[0]["metrics"].values() == {"a": 4.0, "m": 1.0, "only/0": 1.0, "only/1": 1.0}


def test_moments_of_unequal_parts_are_those_of_the_whole(both):
    for one in both:
        assert one["moments"] == [1e8 + 2, 2.0]


def test_what_rank_0_finds_holds_for_all_and_no_other_looks(both):
    assert [one["from main"] for one in both] == ["from 0", "from 0"]
    assert [one["asked"] for one in both] == [[0], []]


def test_a_rank_that_fails_is_named_with_its_reason_and_the_others_do_not_hang():
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed.*on purpose"):
        run_ranks(one_fails, timeout=120)


def test_alone_everything_is_the_identity():
    value = torch.tensor([1.0, 2.0])
    assert global_sum(value) is global_max(value) is value
    assert gather(value) == [value]
    assert broadcast("word") == from_main(lambda: "word") == "word"
    barrier()
    assert World().share(3) == range(3)
    with pytest.raises(AssertionError, match="3 items do not divide among 2 ranks"):
        World(size=2).share(3)


def test_a_rank_without_a_gpu_is_named_before_ranks_meet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BackendError, match=r"local rank 2 has no GPU: 2 .*CUDA_VISIBLE_DEVICES"):
        start(World(rank=2, size=3, local_rank=2), 1.0)


def test_a_port_that_is_taken_is_named_with_a_way_to_give_another(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        for name, value in {**place, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BackendError, match=r"is taken: .*--master_port 29501"):
            start(World.from_launcher(), 20)
