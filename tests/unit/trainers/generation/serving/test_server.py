"""Over HTTP: what the trainer's side makes of every answer, and of none."""

import socket
import threading

import pytest

from tests.unit.trainers.generation.serving.fakes import (
    Served,
    answer,
    asked,
    description,
    request,
    weights_file,
)
from trainers.errors import GenerationError, LostServerError
from trainers.generation.serving.client import ServerClient
from trainers.generation.serving.server import serve


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def loaded(client, tmp_path, version=0, session="one", **changes):
    client.open(session, description(**changes))
    path = weights_file(tmp_path / "w", version)
    client.send_weights(path, session, version, is_local=True)
    return client


def generate(client, body, version=0, session="one"):
    answers = {}
    client.generate(body, session, version, lambda i, *rest: answers.update({i: rest}))
    return answers


@pytest.mark.parametrize("is_local", [True, False])
def test_weights_come_as_a_path_or_as_bytes(served, tmp_path, is_local):
    client = served.client()
    client.open("one", description())
    path = weights_file(tmp_path / "w", 2, value=0.25)
    client.send_weights(path, "one", 2, is_local=is_local)
    assert client.status()["version"] == 2
    assert generate(client, asked(4), 2) == {0: answer(4, 3, 0.25)}


def test_a_server_for_others_reads_no_path_of_its_machine(tmp_path):
    served = Served(takes_paths=False)
    client = served.client()
    client.open("one", description())
    path = weights_file(tmp_path / "w", 0)
    with pytest.raises(GenerationError, match="only a worker that the trainer started"):
        client.send_weights(path, "one", 0, is_local=True)
    client.send_weights(path, "one", 0, is_local=False)
    served.close()


def test_a_push_that_ends_early_leaves_the_weights_that_are_there(served, tmp_path):
    client = loaded(served.client(), tmp_path, version=1)
    content = weights_file(tmp_path / "w", 2).read_bytes()
    head = (
        f"POST /weights HTTP/1.0\r\nAuthorization: Bearer \r\nX-Session: one\r\n"
        f"X-Policy-Version: 2\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(served.server.server_address) as connection:
        connection.sendall(head.encode() + content[:-20])
        connection.shutdown(socket.SHUT_WR)
        reply = connection.makefile("rb").read()
    assert b"409" in reply
    assert b"the connection ended 20 bytes before the weights did" in reply
    assert (client.status()["version"], served.engine.updates) == (1, [1])


def test_a_refusal_says_what_and_is_no_loss(served, tmp_path):
    client = loaded(served.client(), tmp_path, version=3)
    with pytest.raises(GenerationError, match="policy version 2; weights here: version 3") as info:
        generate(client, asked(1), version=2)
    assert not isinstance(info.value, LostServerError)
    with pytest.raises(GenerationError, match="another model: layers is 2 here and 5"):
        client.open("two", description(model={"layers": 5}))
    body = {**asked(1), "requests": [request(prompt=range(9))]}
    with pytest.raises(GenerationError, match="longer than 8 tokens"):
        generate(client, body, version=3)


def test_a_model_that_the_engine_cannot_run_is_refused_when_opened(served):
    with pytest.raises(GenerationError, match="heads of 16 do not run here"):
        served.client().open("one", description(model={"heads": 16}))


def test_one_that_was_started_again_counts_as_lost(served):
    with pytest.raises(LostServerError, match="was started again"):
        generate(served.client(), asked(1))


def test_a_wrong_secret_is_refused_with_the_name_of_the_variable():
    served = Served(token="right")
    with pytest.raises(GenerationError, match="LLMGYM_WORKER_TOKEN"):
        served.client(token="wrong").status()
    assert served.client(token="right").status()["protocol"] == 1
    served.close()


def test_a_server_that_others_reach_needs_a_secret(monkeypatch, capsys):
    monkeypatch.delenv("LLMGYM_WORKER_TOKEN", raising=False)
    with pytest.raises(SystemExit):
        serve(None, ["--host", "0.0.0.0", "--port", "0"])
    assert "LLMGYM_WORKER_TOKEN" in capsys.readouterr().err


def test_a_server_that_is_down_is_lost_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LostServerError, match=f"http://127.0.0.1:{port} was lost at /status"):
        ServerClient(f"http://127.0.0.1:{port}", timeout=5.0).status()


def answering(reply):
    """Listen once, send `reply`, and close."""
    listener = socket.create_server(("127.0.0.1", 0))

    def once():
        connection, _ = listener.accept()
        with listener, connection:
            connection.settimeout(5.0)
            connection.recv(65536)
            connection.sendall(reply)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # a request that is left unread resets the connection
                pass

    threading.Thread(target=once, daemon=True).start()
    return ServerClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=5.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b'{"request": 0, "ids": [1], "logprobs": [-1.0]}\n', "the connection ended"),
        (b'{"request": 0, "ids": [1', "was lost"),
        (b"", "the connection ended"),
    ],
)
def test_responses_that_break_off_are_a_loss_and_those_before_count(lines, message):
    client, answers = answering(b"HTTP/1.0 200 OK\r\n\r\n" + lines), []
    with pytest.raises(LostServerError, match=message):
        client.generate(asked(1, 2), "one", 0, lambda *given: answers.append(given))
    assert len(answers) == (b"logprobs" in lines)


def test_a_response_of_another_version_is_never_taken_for_good():
    client = answering(b'HTTP/1.0 200 OK\r\n\r\n{"done": true, "version": 4}\n')
    with pytest.raises(GenerationError, match=r"wrote with policy version 4.*version 5"):
        client.generate(asked(), "one", 5, print)


def test_another_program_is_no_server_and_another_protocol_says_so():
    reply = b"HTTP/1.0 200 OK\r\n\r\n"
    with pytest.raises(LostServerError, match="was lost"):
        answering(reply + b"<html>").status()
    with pytest.raises(GenerationError, match="speaks protocol 9 and this run 1"):
        answering(reply + b'{"protocol": 9}').status()


def test_a_silent_server_is_lost_and_a_slow_one_that_goes_on_is_not(served, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.generation.serving.server.PROGRESS_SECONDS", 0.05)
    client = loaded(served.client(timeout=0.4), tmp_path)
    served.engine.seconds = 0.1  # eight steps take twice the time that it may be silent
    assert generate(client, asked(1, new=8)) == {0: answer(1, 8, 1.0)}
    served.engine.seconds = 0.8
    with pytest.raises(LostServerError, match=r"silent for 0.4 s at /generate"):
        generate(client, asked(1, new=2))
