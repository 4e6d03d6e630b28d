"""Servers under load: a server in a process, which answers, fails or dies as a test asks."""

import json
import math
import threading
import time

import numpy as np
import pytest

from tests.unit.trainers.inference.fake_engine import fake_python, free_port
from trainers.bench import endpoint
from trainers.bench.endpoint import EndpointSettings, bench_endpoint, load_figures, percentiles
from trainers.bench.load import Load, arrival_times, run_load
from trainers.bench.requests import Answered, Api, ask, check_url
from trainers.bench.tables import endpoint_lines
from trainers.cli import main as cli
from trainers.errors import ConfigError, LostServerError
from trainers.inference.endpoint_files import EndpointFile, note_end, write_endpoint
from trainers.inference.server_process import ServerProcess, check_port, is_healthy
from trainers.inference.servers import ServeSettings, server_command

TOKEN = "a-token-that-nobody-guesses"
FEW = EndpointSettings(
    clients=(1, 16), rates=(200.0,), requests=20, new_tokens=4, wait_seconds=20.0
)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start servers, and end them with the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LLMGYM_LLAMA_CPP_PYTHON", str(fake_python(tmp_path / "engine")))
    monkeypatch.delenv("LLMGYM_ENDPOINT_TOKEN", raising=False)
    processes = []

    def started(ends=None, healthy=True):
        if ends:
            monkeypatch.setenv("FAKE_ENDS", ends)
        port, log = free_port(), tmp_path / "log"
        settings = ServeSettings(
            engine="llama-cpp", model="m.gguf", name="tiny", port=port, token=TOKEN
        )
        process = ServerProcess(server_command(settings), log)
        processes.append(process)
        url = f"http://127.0.0.1:{port}/v1"
        file = EndpointFile(
            url=url, engine="llama-cpp", model="tiny", token=TOKEN, pid=process.pid, log=str(log)
        )
        write_endpoint(port, file)
        if healthy:
            assert process.wait_until_healthy("127.0.0.1", port, 20.0)
        return process, port, url

    yield started
    for process in processes:
        process.stop()


def test_closed_and_open_loads_are_measured_with_the_token_of_the_file(start):
    _, _, url = start()
    result = bench_endpoint(url, FEW)
    assert (result.engine, result.model, result.lost) == ("llama-cpp", "tiny", None)
    assert [figures.load.label for figures in result.figures] == [
        "1 client", "16 clients", "200 requests/s",
    ]  # fmt: skip
    for figures in result.figures:
        assert (figures.sent, figures.failed) == (20, 0)
        assert figures.first_token[50] <= figures.complete[50] <= figures.complete[99]
        assert figures.between_tokens[50] >= 0.001  # a piece every 2 ms
        assert figures.tokens_per_second == pytest.approx(80 / figures.seconds)
    assert json.loads(json.dumps(result.record()))["kind"] == "endpoint"
    assert "0 of 20" in "\n".join(endpoint_lines(result))
    assert TOKEN not in json.dumps(result.record())


def test_clients_are_served_at_the_same_time(start):
    _, _, url = start()

    def gain():
        alone, many = bench_endpoint(url, FEW).figures[:2]
        return many.tokens_per_second / alone.tokens_per_second

    # A pause of this machine can fall into one of the two loads, not into three in a row.
    assert any(gain() > 2 for _ in range(3))


def test_a_server_that_dies_while_it_is_measured_is_an_error_with_what_was_measured(start, capsys):
    _, port, url = start(ends="when asked")
    words = ["bench", "--endpoint", url, "--clients", "1", "4", "--requests", "8",
             "--new-tokens", "3"]  # fmt: skip
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert "1 client " in printed.out
    assert "0 of 8" in printed.out
    assert "LostServerError: the llama-cpp server of" in printed.err
    assert "out of memory, sorry" in printed.err
    assert not is_healthy("127.0.0.1", port)


def test_a_server_that_ends_at_its_start_is_told_with_its_last_lines(start):
    process, port, url = start(ends="at its start", healthy=False)
    with pytest.raises(LostServerError, match=r"exit code 7.\nthe weights are of another planet"):
        process.wait_until_healthy("127.0.0.1", port, 20.0)
    process.stop()
    assert not process.was_stopped
    note_end(port, process.exit_code)
    with pytest.raises(LostServerError, match=r"ended with exit code 7.\nthe weights"):
        bench_endpoint(url, FEW)


def test_a_failed_request_is_counted_and_times_are_of_the_others(start):
    _, _, url = start()
    api = Api(url=url, model="tiny", token=TOKEN)
    answers = run_load(
        Load(kind="closed", clients=2, requests=6), ["hello", "please fail"],
        lambda prompt: ask(api, prompt, 3), lambda: True,
    )  # fmt: skip
    figures = load_figures(Load(kind="closed", clients=2, requests=6), answers)
    assert (figures.sent, figures.failed) == (6, 3)
    assert figures.errors == ('HTTP 500: {"error": "no"}',)
    assert sum(answer.tokens for answer in answers) == 9


def test_a_wrong_token_is_refused_once(start, monkeypatch):
    _, _, url = start()
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "another-token-of-somebody")
    with pytest.raises(ConfigError, match="refuses the token"):
        bench_endpoint(url, FEW)


def test_nothing_that_answers_is_told_with_the_command_that_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LostServerError, match="llmgym serve MODEL"):
        bench_endpoint(f"http://127.0.0.1:{free_port()}", EndpointSettings(wait_seconds=0.1))


def test_a_port_that_is_taken_is_refused(start):
    _, port, _ = start()
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} cannot be listened at.*--port"):
        check_port("127.0.0.1", port)
    check_port("127.0.0.1", free_port())


def test_a_server_that_is_asked_to_end_does(start):
    process, port, _ = start()
    process.stop()
    assert (process.wait(), process.was_stopped) == (0, True)
    assert not is_healthy("127.0.0.1", port)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="is no address of a server"):
        check_url(url)


def test_an_address_without_a_path_is_that_of_the_api():
    assert check_url("http://a:1") == "http://a:1/v1"
    assert check_url("http://a:1/v1/") == "http://a:1/v1"
    assert Api(url="https://a/x/v1", model="m").path("/models") == "/x/v1/models"


def test_arrivals_are_a_poisson_process():
    times = arrival_times(Load(kind="open", rate=4.0, requests=4000))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.06)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.06)
    assert (times == arrival_times(Load(kind="open", rate=4.0, requests=4000))).all()


def test_an_open_load_does_not_wait_for_answers():
    lock, running, most = threading.Lock(), [0], [0]

    def slow(prompt):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.2)
        with lock:
            running[0] -= 1
        return Answered(began=0.0, ended=0.2, pieces=(0.1,))

    assert (
        len(run_load(Load(kind="open", rate=1000.0, requests=12), ["a"], slow, lambda: True)) == 12
    )
    assert most[0] > 6
    most[0] = 0
    run_load(Load(kind="closed", clients=3, requests=12), ["a"], slow, lambda: True)
    assert most[0] == 3


def test_nothing_is_sent_to_a_server_that_is_gone():
    failed = Answered(began=0.0, ended=0.0, error="refused")
    for load in (Load(kind="closed", clients=2, requests=50),
                 Load(kind="open", rate=50.0, requests=50)):  # fmt: skip
        assert len(run_load(load, ["a"], lambda prompt: failed, lambda: False)) < 10


def test_percentiles_and_figures_of_answers():
    assert percentiles([]) == {}
    assert percentiles([1.0, 2.0, 3.0])[50] == 2.0
    answers = [
        Answered(began=1.0, pieces=(2.0, 2.5, 3.5), ended=4.0, tokens=3),
        Answered(began=0.0, pieces=(3.0, 4.0), ended=5.0, tokens=2),
        Answered(began=2.0, ended=6.0, error="no"),
    ]
    figures = load_figures(Load(kind="closed", requests=3), answers)
    assert (figures.seconds, figures.tokens_per_second) == (6.0, 5 / 6)
    assert figures.first_token[50] == 2.0
    assert figures.between_tokens[50] == 1.0
    assert figures.complete[50] == 4.0
    assert figures.requests_per_second == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clients": (), "rates": ()}, "no load is named"),
        ({"clients": (0,)}, "counted from 1"),
        ({"rates": (math.nan,)}, "rates are above 0"),
        ({"requests": 0}, "a load needs requests"),
    ],
)
def test_a_load_of_nothing_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        EndpointSettings(**changes)


def test_options_that_do_nothing_are_refused(capsys):
    for words, message in (
        (["a", "--endpoint", "http://a/v1"], "not both"),
        (["--endpoint", "http://a/v1", "--rounds", "12"], "--rounds only has an effect with MODEL"),
        (["a", "--clients", "3"], "--clients only has an effect with --endpoint"),
    ):
        assert cli.main(["bench", *words]) == 2
        assert message in capsys.readouterr().err


def test_prompts_differ_from_their_first_word_on():
    texts = endpoint.endpoint_prompts(30)
    assert len({text.split()[0] for text in texts}) == len(texts)
    assert {len(text.split()) for text in texts} == {30}
