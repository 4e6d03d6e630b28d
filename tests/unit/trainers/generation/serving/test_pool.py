"""Servers that are lost: no request is, and none is answered twice."""

import pytest

from tests.unit.trainers.generation.serving.fakes import (
    SAMPLING,
    Served,
    answer,
    description,
    request,
    weights_file,
)
from trainers.errors import GenerationError, LostServerError
from trainers.generation.serving.pool import Endpoint, Pool

SEEDS = range(0, 70, 10)


@pytest.fixture
def servers():
    made = [Served() for _ in range(3)]
    yield made
    for served in made:
        served.close()


def pool_of(servers, *, session="one", owns=True, timeout=5.0):
    endpoints = [Endpoint(timeout=timeout, url=served.url) for served in servers]
    return Pool(endpoints, session=session, described=description(), owns=owns)


def write(pool, version=0, new=3):
    return pool.write([request(seed, new) for seed in SEEDS], SAMPLING, version)


EXPECTED = [answer(seed, 3, 1.0) for seed in SEEDS]


def as_given(answers):
    return [(list(ids), list(logprobs)) for ids, logprobs in answers]


def test_requests_are_shared_out_and_answered_in_their_order(servers, tmp_path):
    pool = pool_of(servers)
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    assert as_given(write(pool)) == EXPECTED
    assert all(served.engine.steps for served in servers)


def test_requests_of_a_server_that_is_lost_in_mid_rollout_go_to_the_others(servers, tmp_path):
    pool = pool_of(servers)
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    servers[1].close()  # it listens no more
    assert as_given(write(pool)) == EXPECTED
    assert (servers[1].engine.steps, servers[0].engine.steps > 3) == (0, True)


def test_requests_of_a_silent_server_go_to_the_others(servers, tmp_path):
    pool = pool_of(servers, timeout=0.5)
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    servers[2].engine.seconds = 1.0
    assert as_given(write(pool)) == EXPECTED


def test_a_server_that_lost_its_state_is_opened_and_loaded_again(servers, tmp_path):
    pool = pool_of(servers[:1])
    pool.open()
    pool.push(weights_file(tmp_path / "w", 4), 4)
    servers[0].worker._engine = servers[0].worker._session = None  # as after a start
    assert as_given(write(pool, 4)) == EXPECTED
    assert servers[0].engine.updates == [4]  # of the engine that was built anew


def test_a_server_that_comes_back_takes_part_from_the_next_weights_on(servers, tmp_path):
    pool = pool_of(servers[:2])
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    pool._endpoints[0].failure = "lost"
    write(pool)
    assert servers[0].engine.steps == 0
    pool.push(weights_file(tmp_path / "w", 1), 1)
    assert as_given(write(pool, 1)) == EXPECTED
    assert servers[0].engine.steps == 3


def test_where_none_is_left_the_error_names_each(servers, tmp_path):
    pool = pool_of(servers[:2])
    pool.open()
    pool.push(weights_file(tmp_path / "w", 0), 0)
    for served in servers[:2]:
        served.close()
    with pytest.raises(LostServerError, match="no generation server is left") as info:
        write(pool)
    assert all(served.url in str(info.value) for served in servers[:2])
    with pytest.raises(LostServerError, match="no generation server took weights"):
        pool.push(weights_file(tmp_path / "w", 1), 1)


def test_a_refusal_is_not_asked_again(servers, tmp_path):
    pool = pool_of(servers)
    pool.open()
    pool.push(weights_file(tmp_path / "w", 3), 3)
    with pytest.raises(GenerationError, match="is of policy version 2") as info:
        write(pool, 2)
    assert not isinstance(info.value, LostServerError)


def test_a_rank_that_does_not_own_the_servers_sends_nothing_and_writes(servers, tmp_path):
    owner, other = pool_of(servers), pool_of(servers, owns=False)
    owner.open()
    owner.push(weights_file(tmp_path / "w", 2), 2)
    other.open()
    assert as_given(write(other, 2)) == EXPECTED
    assert servers[0].engine.updates == [2]


def test_a_server_with_another_run_is_refused_and_not_taken_back(servers, tmp_path):
    first, second = pool_of(servers[:1]), pool_of(servers[:1], session="two")
    first.open()
    first.push(weights_file(tmp_path / "w", 0), 0)
    second.open()
    with pytest.raises(GenerationError, match="another run has taken this worker"):
        write(first)
