"""A worker's laws: whose it is, which weights it holds, and what it refuses."""

import queue

import pytest

from tests.unit.trainers.generation.serving.fake_engine import FakeEngine
from tests.unit.trainers.generation.serving.fakes import (
    answer,
    asked,
    opened,
    weights_file,
)
from trainers.generation.serving.protocol import WeightsError
from trainers.generation.serving.worker import NotOpenError, RefusedError, Worker


@pytest.fixture
def built():
    return []


@pytest.fixture
def worker(built):
    def build(described):
        built.append(FakeEngine(described))
        return built[-1]

    return Worker(build)


def written(worker, stream, count):
    """Step until `count` responses came; give them by request."""
    lines = {}
    while len(lines) < count:
        worker._step()
        while not stream.empty():
            line = stream.get()
            if line != "step":
                lines[line["request"]] = (line["ids"], line["logprobs"])
    return lines


def test_a_session_opens_loads_and_writes(worker, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 3, value=0.5), "one", 3)
    stream = worker.generate(asked(10, 20), "one", 3)
    assert written(worker, stream, 2) == {0: answer(10, 3, 0.5), 1: answer(20, 3, 0.5)}


def test_two_ranks_write_with_one_worker_at_the_same_time(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 0), "one", 0)
    first, second = (worker.generate(asked(seed), "one", 0) for seed in (1, 5))
    assert written(worker, first, 1) == {0: answer(1, 3, 1.0)}
    assert second.get_nowait() == "step"
    assert built[0].steps == 3


@pytest.mark.parametrize("version", [2, 4])
def test_a_rollout_of_another_version_is_refused(worker, tmp_path, version):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 3), "one", 3)
    with pytest.raises(RefusedError, match=rf"is of policy version {version}.*version 3"):
        worker.generate(asked(1), "one", version)


def test_nothing_is_written_before_weights_came(worker):
    worker.open(opened())
    with pytest.raises(RefusedError, match="weights here: none"):
        worker.generate(asked(1), "one", 0)


def test_weights_out_of_order_are_refused_and_those_here_stay(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 5), "one", 5)
    with pytest.raises(RefusedError, match="version 4 came after those of version 5"):
        worker.load(weights_file(tmp_path / "w", 4), "one", 4)
    assert (worker.status()["version"], built[0].updates) == (5, [5])


def test_the_same_version_may_come_again(worker, built, tmp_path):
    worker.open(opened())
    for _ in range(2):
        worker.load(weights_file(tmp_path / "w", 5), "one", 5)
    assert built[0].updates == [5, 5]


def test_half_of_the_weights_never_reaches_the_engine(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 1), "one", 1)
    path = weights_file(tmp_path / "w", 2)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=r"cut after|2 were written"):
        worker.load(path, "one", 2)
    assert (worker.status()["version"], built[0].updates) == (1, [1])


def test_an_engine_that_fails_to_load_has_no_version(worker, built, tmp_path, monkeypatch):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 1), "one", 1)

    def broken(path, version):
        raise ValueError("no weights came for b")

    monkeypatch.setattr(built[0], "update", broken)
    with pytest.raises(ValueError, match="no weights came for b"):
        worker.load(weights_file(tmp_path / "w", 2), "one", 2)
    assert worker.status()["version"] is None


def test_weights_that_come_in_mid_rollout_end_it(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 1), "one", 1)
    stream = worker.generate(asked(1), "one", 1)
    worker._step()
    worker.load(weights_file(tmp_path / "w", 2), "one", 2)
    assert [stream.get_nowait(), stream.get_nowait()] == [
        "step", {"error": "weights of version 2 came in mid-rollout"}
    ]  # fmt: skip
    assert not built[0].is_busy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"layers": 3}}, "another model: layers is 2 here and 3 in the run"),
        ({"tokenizer": "xyz"}, "another tokenizer: abc, asked for xyz"),
        ({"engine": {"dtype": "bfloat16"}}, "another engine: dtype is float32"),
    ],
)
def test_another_model_or_tokenizer_is_refused_and_the_first_run_goes_on(
    worker, tmp_path, changes, message
):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 0), "one", 0)
    with pytest.raises(RefusedError, match=message):
        worker.open(opened("two", **changes))
    assert isinstance(worker.generate(asked(1), "one", 0), queue.Queue)


def test_another_run_with_the_same_model_takes_over_and_has_no_weights_yet(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 7), "one", 7)
    worker.open(opened("two"))
    assert (len(built), worker.status()["version"]) == (1, None)
    with pytest.raises(RefusedError, match="another run has taken this worker"):
        worker.generate(asked(1), "one", 7)
    worker.load(weights_file(tmp_path / "w", 0), "two", 0)  # its versions begin anew


def test_another_protocol_is_refused_before_an_engine_is_built(worker, built):
    with pytest.raises(RefusedError, match="speaks protocol 2 and this worker 1"):
        worker.open({**opened(), "protocol": 2})
    assert not built


def test_a_worker_that_was_started_again_says_so(worker):
    with pytest.raises(NotOpenError):
        worker.generate(asked(1), "one", 0)


def test_sleep_takes_the_weights_only_where_the_engine_can(worker, built, tmp_path):
    worker.open(opened())
    worker.load(weights_file(tmp_path / "w", 1), "one", 1)
    assert worker.sleep("one")["version"] == 1
    built[0].can_sleep = True
    assert worker.sleep("one")["version"] is None
