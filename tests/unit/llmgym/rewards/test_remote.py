"""Rewards of servers: what is sent and read, what a bad server costs, and where a token goes."""

import json
import logging
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmgym import endpoint
from llmgym.endpoint import Endpoint
from llmgym.errors import RewardError
from llmgym.messages import Completion, Message, Sample, Task
from llmgym.rewards.base import resolve, score_samples
from llmgym.rewards.judge import JudgeReward, grade_in, judge_reward
from llmgym.rewards.remote import HttpReward, http_reward

SECRET = "sk-very-secret-token-123"


class Server(ThreadingHTTPServer):
    """Answers with what `answer(body)` returns: JSON, or a status, or (status, text)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.bodies, self.headers, self.active, self.most = None, [], [], 0, 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.active += 1
            self.server.most = max(self.server.most, self.server.active)
        answer = self.server.answer(body)
        status, text = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
        with self.server.lock:
            self.server.active -= 1
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("LLMGYM_ENDPOINT_TOKEN", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def samples(count, prompt="Say red", **meta):
    task = Task(id="t", prompt=prompt, answer="red", meta={"label": 7, **meta})
    messages = (Message("user", "Say red"),)
    return [Sample(task, messages, Completion(f"r{i}"), f"r{i}") for i in range(count)]


def http(server, **settings):
    wire, concurrency = settings.pop("wire", "llmgym"), settings.pop("concurrency", 8)
    settings = {"timeout": 5.0, "retries": 1, **settings}
    return HttpReward(Endpoint(url=server.url, **settings), wire=wire, concurrency=concurrency)


def of_each(body):
    return {"scores": [float(sample["response"][1:]) for sample in body["samples"]]}


def test_a_server_gets_samples_in_batches_and_its_scores_come_back_in_order(server):
    server.answer = of_each
    scores = score_samples(http(server), samples(70))
    assert [score.value for score in scores] == [float(i) for i in range(70)]
    assert sorted(len(body["samples"]) for body in server.bodies) == [6, 32, 32]
    sample = server.bodies[0]["samples"][0]
    assert sample["prompt"] == [{"role": "user", "content": "Say red"}]
    assert (sample["answer"], sample["columns"], sample["turn"]) == ("red", {"label": 7}, 0)


def test_a_score_has_parts_and_spans_or_abstains(server):
    score = {"value": 0.5, "parts": {"style": 1}, "spans": [[0, 2, 0.25]]}
    server.answer = lambda body: {"scores": [score, None, True]}
    first, second, third = score_samples(http(server), samples(3))
    assert (first.value, first.parts, first.spans) == (0.5, {"style": 1.0}, ((0, 2, 0.25),))
    assert (second.status, third.value) == ("abstain", 1.0)


def test_a_server_for_openrlhf_is_asked_one_at_a_time_in_its_own_words(server):
    server.answer = lambda body: {
        "rewards": [2.0], "scores": 1.0, "extra_logs": {"length": [len(body["query"][0])]}
    }  # fmt: skip
    scores = score_samples(http(server, wire="openrlhf", concurrency=3), samples(7))
    assert [score.value for score in scores] == [2.0] * 7
    assert scores[0].parts == {"scores": 1.0, "length": 9.0}
    assert len(server.bodies) == 7
    assert server.bodies[0].keys() == {"query", "prompts", "labels"}
    assert {body["query"][0] for body in server.bodies} == {f"Say redr{i}" for i in range(7)}
    assert server.bodies[0]["prompts"] == ["Say red"]
    assert server.bodies[0]["labels"] == ["red"]


def test_requests_run_at_the_same_time_up_to_a_limit(server):
    def answer(body):
        time.sleep(0.1)
        return {"rewards": 1.0}

    server.answer = answer
    score_samples(http(server, wire="openrlhf", concurrency=4), samples(12))
    assert server.most == 4


def test_a_request_that_failed_is_repeated_and_counted(server):
    server.answer = lambda body: (503, "busy") if len(server.bodies) == 1 else of_each(body)
    (score,) = score_samples(http(server), samples(1))
    assert (score.status, score.retries) == ("ok", 1)


def test_a_server_that_names_a_time_is_asked_again_then(monkeypatch):
    waited = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    busy = [endpoint.EndpointError("busy", status=429, pause=pause) for pause in (7.0, 900.0, 0.0)]
    monkeypatch.setattr(Endpoint, "_once", lambda *_: _raised(busy.pop(0)) if busy else "done")
    assert Endpoint(url="http://127.0.0.1/", retries=3).post({}) == ("done", 3)
    assert waited[:2] == [7.0, endpoint.LONGEST_PAUSE]
    assert 0.5 * 4 * endpoint.FIRST_PAUSE <= waited[2] <= 4 * endpoint.FIRST_PAUSE


def _raised(error):
    raise error


def test_the_time_that_a_server_names_is_read(server, monkeypatch):
    monkeypatch.setattr(Handler, "end_headers", _with_retry_after)
    server.answer = lambda body: (503, "{}")
    with pytest.raises(endpoint.EndpointError) as caught:
        Endpoint(url=server.url, retries=0)._once({})
    assert caught.value.pause == 3.0


def _with_retry_after(handler):
    handler.send_header("Retry-After", "3")
    BaseHTTPRequestHandler.end_headers(handler)


@pytest.mark.parametrize(
    ("answer", "count", "error"),
    [
        (lambda body: (500, "out of memory"), 2, "answered 500: out of memory"),
        (lambda body: (401, f"bad {SECRET}"), 1, r"answered 401: bad (hidden)"),
        (lambda body: (200, "<html>"), 1, "answered no JSON"),
        (lambda body: time.sleep(1.0) or of_each(body), 2, "did not answer in 0.3 s"),
    ],
    ids=["broken", "refused", "no JSON", "slow"],
)
def test_a_server_that_fails_costs_its_samples_and_is_no_zero(
    server, answer, count, error, monkeypatch, caplog
):
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", SECRET)
    server.answer = answer
    scores = score_samples(http(server, timeout=0.3), samples(2))
    assert [score.status for score in scores] == ["error", "error"]
    assert error in scores[0].error
    assert len(server.bodies) == count
    assert SECRET not in caplog.text + str(scores)


@pytest.mark.parametrize(
    ("wire", "answer", "match"),
    [
        ("llmgym", {"scores": [1.0]}, "answered 1 scores for 2 samples"),
        ("llmgym", {"score": [1.0, 2.0]}, "for 2 samples. It must answer"),
        ("llmgym", [1.0, 2.0], "for 2 samples. It must answer"),
        ("llmgym", {"scores": ["a", "b"]}, "answered the score str 'a'"),
        ("openrlhf", {"rewards": [1.0, 2.0]}, "answered rewards .* for one sample: one number"),
        ("openrlhf", {"scores": [1.0]}, 'which has no "rewards"'),
        ("openrlhf", {"rewards": ["good"]}, "answered rewards"),
    ],
)
def test_a_server_that_answers_something_else_is_a_broken_reward(server, wire, answer, match):
    server.answer = lambda body: answer
    with pytest.raises(RewardError, match=match):
        score_samples(http(server, wire=wire), samples(2))


def test_a_server_that_is_down_is_found_before_a_run(server):
    url = server.url.replace(str(server.server_port), "9")
    for spec in (
        {"name": "http", "kwargs": {"url": url}},
        {"name": "judge", "kwargs": {"url": url, "model": "m"}},
    ):
        with pytest.raises(RewardError, match=r"cannot be reached: .*refused.*Start the server"):
            resolve(spec)
    gone = HttpReward(Endpoint(url=url, retries=0))
    (score,) = score_samples(gone, samples(1))
    assert score.status == "error"
    assert "cannot be reached" in score.error


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"url": "localhost:5000"}, "url must be http://HOST"),
        ({"url": "http://me:pw@h/"}, "Put the token into the variable"),
        ({"url": "http://h/", "timeout": 0.0}, "timeout must be above 0"),
        ({"url": "http://h/", "wire": "soap"}, "wire is llmgym or openrlhf"),
        ({"url": "http://h/", "concurrency": 0}, "concurrency"),
        ({"url": "http://h/", "variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is to hold the"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(RewardError, match=match):
        http_reward(**settings)


@pytest.mark.parametrize("variable", ["LLMGYM_ENDPOINT_TOKEN", "MY_ENDPOINT"])
def test_a_token_goes_from_its_variable_to_the_server_and_nowhere_else(
    server, variable, monkeypatch, caplog
):
    monkeypatch.setenv(variable, SECRET)
    server.answer = of_each
    reward = http_reward(server.url, variable=variable)
    with caplog.at_level(logging.DEBUG):
        score_samples(reward, samples(1))
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in caplog.text + repr(vars(reward)) + repr(reward.endpoint)


def test_the_shared_generator_is_left_alone(server):
    server.answer = lambda body: (503, "busy") if len(server.bodies) == 1 else of_each(body)
    random.seed(3)
    before = random.getstate()
    score_samples(http(server), samples(1))
    assert random.getstate() == before


def graded(content):
    return {"choices": [{"message": {"content": content}}]}


def judge(server, **settings):
    return judge_reward(server.url, "grader", **settings)


@pytest.mark.parametrize(
    ("content", "grade"),
    [
        ('{"reason": "fine", "grade": 7}', 7.0),
        ('<think>{"grade": 1}</think>\n```json\n{"reason": "a {b} c", "grade": 2.5}\n```', 2.5),
        ('{"grade": 3} and then {"grade": 10}', 10.0),
        ('{"inner": {"x": 1}, "grade": 4}', 4.0),
        ("I would say seven.", None),
        ("", None),
        ('{"grade": "7"}', None),
        ('{"grade": true}', None),
        ('{"grade": 11}', None),
        ('{"grade": NaN}', None),
        ('{"grade": 1', None),
        ("{" * 3000, None),
    ],
)  # fmt: skip
def test_a_grade_is_the_number_of_the_last_json_object(content, grade):
    assert grade_in(content) == grade


def test_a_judge_grades_each_response_between_0_and_1(server):
    server.answer = lambda body: graded('{"reason": "ok", "grade": 4}')
    reward = judge(server, criteria="Is it a colour?")
    scores = score_samples(reward, samples(3))
    assert [score.value for score in scores] == [0.4] * 3
    assert scores[0].parts == {"grade": 4.0}
    body = server.bodies[0]
    assert (body["model"], body["temperature"]) == ("grader", 0.0)
    assert body["response_format"]["type"] == "json_schema"
    system, user = (message["content"] for message in body["messages"])
    assert "Is it a colour?" in system
    assert all(word in user for word in ("[user] Say red", "reference answer", "red"))
    marks = {message["messages"][0]["content"].split("marks ")[1][:16] for message in server.bodies}
    assert len(marks) == 3


@pytest.mark.parametrize(
    "answer",
    [graded("Seven!"), graded(None), {"choices": []}, {}, [], graded('{"grade": 99}')],
    ids=["prose", "nothing", "no choice", "empty", "list", "off the scale"],
)
def test_a_judge_that_answers_nonsense_abstains(server, answer):
    server.answer = lambda body: answer
    (score,) = score_samples(judge(server), samples(1))
    assert (score.status, score.value) == ("abstain", 0.0)
    assert "the judge gave no grade" in score.error


def test_a_server_without_structured_answers_is_asked_without(server):
    server.answer = lambda body: (
        (400, "response_format is not supported")
        if "response_format" in body
        else graded('{"grade": 5}')
    )
    reward = judge(server, concurrency=1)
    assert [score.value for score in score_samples(reward, samples(3))] == [0.5] * 3
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]


def test_a_judge_that_fails_is_an_error(server):
    server.answer = lambda body: (400, "no such model")
    reward = JudgeReward(Endpoint(url=server.url, retries=0), "nobody")
    (score,) = score_samples(reward, samples(1))
    assert score.status == "error"
    assert "answered 400: no such model" in score.error
