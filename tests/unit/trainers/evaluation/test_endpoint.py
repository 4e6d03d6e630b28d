"""Scores of a served model: what it is asked, what its answers earn, and what a failure costs."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmgym import endpoint
from scripts.check_exports import oracle
from trainers.cli import eval as command
from trainers.errors import ConfigError, GenerationError
from trainers.evaluation.endpoint import ServedModel, completion_of, evaluate_endpoint

SUMS, GAME = "llmgym/Arithmetic-v0", "llmgym/GuessNumber-v0"
TEST = {"split": "test"}


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.0)
    monkeypatch.delenv("LLMGYM_ENDPOINT_TOKEN", raising=False)


@pytest.fixture
def served():
    """Serve answers of a function of (number of the request, body, headers): (code, mapping)."""
    servers = []

    def serve(answer):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, body, dict(self.headers)))
                code, fields = answer(len(asked), body, self.headers)
                text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def answered(text, reason="stop"):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]
    }


def score(url, id=SUMS, count=4, workers=1, **changes):
    target = ServedModel(url=url, model="m", **changes)
    return evaluate_endpoint(id, target, count=count, kwargs=TEST, workers=workers)


@pytest.mark.parametrize("id", [SUMS, GAME, "llmgym/FrozenLake-v0"])
def test_perfect_responses_earn_the_most_in_one_turn_and_in_several(id):
    with oracle(id, 12, **TEST) as url:
        result = score(url, id, count=12, workers=4)
    assert (result.env, result.mean, result.scores) == (id, 1.0, (1.0,) * 12)
    assert result.ci_low < 1.0 == result.ci_high
    assert len(result.rows) == 12


def test_a_request_names_model_dialogue_limits_and_token(served, monkeypatch):
    url, asked = served(lambda *_: (200, answered("no")))
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "s3cret")
    score(f"{url}/", count=2, max_tokens=7, temperature=0.5, top_p=0.9)
    path, body, headers = asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer s3cret"
    assert body["messages"][0]["role"] == "user"
    del body["messages"]
    assert body == {"model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9}
    monkeypatch.delenv("LLMGYM_ENDPOINT_TOKEN")
    score(f"{url}/chat/completions", count=1)
    assert asked[-1][0] == "/v1/chat/completions"
    assert "Authorization" not in asked[-1][2]


def test_a_token_that_a_server_repeats_is_in_no_message(served, monkeypatch, caplog):
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "s3cret")
    url, _ = served(lambda *_: (401, {"error": "s3cret is no token of mine"}))
    with pytest.raises(GenerationError, match="is no token of mine") as caught:
        score(url)
    url, _ = served(lambda *_: (503, {"error": "s3cret comes too soon"}))
    with pytest.raises(GenerationError, match="comes too soon") as late:
        score(url)
    assert "s3cret" not in f"{caught.value}{late.value}{caplog.text}"


def test_a_response_that_was_cut_truncates(served):
    url, _ = served(lambda *_: (200, answered("1", "length")))
    assert {row["finish_reason"] for row in score(url).rows} == {"length"}


@pytest.mark.parametrize(
    ("code", "says"), [(401, "LLMGYM_ENDPOINT_TOKEN"), (404, "ends before"), (400, "answered 400")]
)
def test_a_refusal_is_an_error_at_once(code, says, served):
    url, asked = served(lambda *_: (code, {"error": "no such model"}))
    with pytest.raises(GenerationError, match=says) as caught:
        score(url, count=50)
    assert "no such model" in str(caught.value)
    assert len(asked) < 10, "the requests that were not sent yet are cancelled"


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(code, served):
    url, asked = served(lambda n, *_: (code, {}) if n <= 2 else (200, answered("no")))
    assert score(url, count=1).scores == (0.0,)
    assert len(asked) == 3


def test_a_task_without_an_answer_has_no_score_which_is_no_zero(served):
    prompts = []

    def answer(_, body, __):
        prompt = body["messages"][0]["content"]
        prompts.append(prompt)
        return (503, {}) if prompt == prompts[0] else (200, answered("no"))

    url, _ = served(answer)
    result = score(url, count=10)
    assert math.isnan(result.scores[0])
    assert result.scores[1:] == (0.0,) * 9
    assert result.mean == 0.0


def test_a_server_that_is_down_is_an_error_with_the_failure():
    with pytest.raises(GenerationError, match=r"4 of 4 tasks have no answer(.|\n)*refused"):
        score("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "answer", [b"<html>", b"{}", b'{"choices": []}', b"[1]", b'{"choices": [{}]}']
)
def test_an_answer_that_is_no_chat_completion_is_an_error(answer, served):
    url, _ = served(lambda *_: (200, answer))
    with pytest.raises(GenerationError, match="no chat completion"):
        score(url)


def test_content_of_none_is_an_empty_response():
    assert completion_of(answered(None)) == ""


def test_environments_that_an_endpoint_cannot_play_are_refused():
    with pytest.raises(ConfigError, match="needs an environment of text"):
        evaluate_endpoint(
            "CartPole-v1", ServedModel(url="http://x", model="m"), count=1, kwargs={}, workers=1
        )
    with pytest.raises(ConfigError, match="describe=system"):
        score("http://127.0.0.1:9/v1", "llmgym/Calculator-v0")


@pytest.mark.parametrize("url", ["localhost:8000", "http://me:word@127.0.0.1/v1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="--endpoint: url"):
        ServedModel(url=url, model="m")


def test_the_command_prints_the_score_with_its_interval(capsys, monkeypatch):
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "t")
    with oracle(SUMS, 8, digits=1, **TEST) as url:
        words = [SUMS, "--endpoint", url, "--model", "oracle", "--n", "8", "--kwargs", "digits=1"]
        assert command.main(words) == 0
        assert "oracle  1 [" in capsys.readouterr().out
        assert command.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["mean"] == 1.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--endpoint", "http://x"], "llmgym eval ID --endpoint URL --model NAME"),
        ([SUMS, "--endpoint", "http://x"], "llmgym eval ID --endpoint URL --model NAME"),
        ([SUMS, "--model", "m"], "give its --endpoint URL too"),
        ([SUMS, "--kwargs", "a=1"], "--kwargs belongs to a served model"),
        ([SUMS, "--max-tokens", "3"], "--max-tokens belongs to a served model"),
        ([SUMS, "--workers", "3"], "--workers belongs to a served model"),
        ([SUMS, "--endpoint", "x", "--model", "m", "--against", "base"], "--against has no effect"),
        ([SUMS, "--endpoint", "x", "--model", "m", "--top-k", "3"], "--top-k has no effect"),
        ([SUMS, "--endpoint", "x", "--model", "m", "--top-p", "0.5"], "give a --temperature"),
        ([SUMS, "--endpoint", "x", "--model", "m", "--n", "0"], "are 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        command.main(words)
