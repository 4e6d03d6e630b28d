"""Commands of servers: what each engine is told, what it is not given, and what is refused."""

import json
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from trainers.errors import ConfigError
from trainers.inference import servers
from trainers.inference.endpoint_files import (
    EndpointFile,
    endpoint_path,
    note_end,
    read_endpoint,
    write_endpoint,
)
from trainers.inference.servers import ServeSettings, server_command

TOKEN = "a-token-that-nobody-guesses"
SETTINGS = ServeSettings(
    engine="vllm", model="m", name="tiny", token=TOKEN, context=128, rows=3, threads=2
)


@pytest.fixture(autouse=True)
def _engines(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for variable in servers.PYTHON_VARIABLES.values():
        monkeypatch.setenv(variable, sys.executable)
    monkeypatch.setattr(servers, "MODULES", {"vllm": "json", "llama-cpp": "json"})
    monkeypatch.setattr(servers, "find_spec", lambda name: name)


@pytest.mark.parametrize("engine", ["vllm", "transformers", "llama-cpp"])
def test_a_token_is_in_no_argument_and_nothing_of_a_launcher_in_the_environment(
    engine, monkeypatch
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "the one of this process")
    command = server_command(replace(SETTINGS, engine=engine))
    assert TOKEN not in " ".join(command.words) + command.given_text
    assert "RANK" not in command.variables
    held = [name for name, value in command.variables.items() if value == TOKEN]
    expected = {"vllm": ["VLLM_API_KEY"], "llama-cpp": ["LLMGYM_ENDPOINT_TOKEN"]}
    assert held == expected.get(engine, [])
    assert "the one of this process" not in command.variables.values()


def test_vllm_is_told_type_context_rows_adapters_and_drafter():
    settings = replace(SETTINGS, adapters={"a": "x/y"}, drafter="small", draft_tokens=5)
    words = server_command(settings).words
    assert words[1:5] == ("-m", "vllm.entrypoints.openai.api_server", "--model", "m")
    pairs = dict(pairwise(words))
    assert (pairs["--dtype"], pairs["--max-model-len"]) == ("float32", "128")
    assert (pairs["--max-num-seqs"], pairs["--host"], pairs["--port"]) == ("3", "127.0.0.1", "8000")
    assert pairs["--lora-modules"] == "a=x/y"
    assert json.loads(pairs["--speculative-config"]) == {
        "method": "draft_model", "model": "small", "num_speculative_tokens": 5,
    }  # fmt: skip


def test_llama_cpp_reads_its_settings_from_its_input():
    command = server_command(replace(SETTINGS, engine="llama-cpp", drafter="d.gguf"))
    given = json.loads(command.given_text)
    assert (given["cache_tokens"], given["rows"], given["threads"]) == (384, 3, 2)
    assert given["drafter"] == "d.gguf"
    long = replace(SETTINGS, engine="llama-cpp", context=100_000, rows=16)
    assert json.loads(server_command(long).given_text)["cache_tokens"] == 100_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "transformers", "host": "0.0.0.0"}, "asks for no token, so it listens on loop"),
        ({"engine": "llama-cpp", "adapters": {"a": "b"}}, "llama-cpp is given no adapters here"),
        ({"engine": "transformers", "drafter": "d"}, "takes no drafter"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        server_command(replace(SETTINGS, **changes))


@pytest.mark.parametrize("engine", ["vllm", "llama-cpp"])
def test_an_engine_that_is_not_installed_names_the_command(engine, monkeypatch, tmp_path):
    settings = replace(SETTINGS, engine=engine)
    monkeypatch.setenv(servers.PYTHON_VARIABLES[engine], "/no/such/python")
    with pytest.raises(ConfigError, match=r"not installed: /no/such/python is no file.*make eng"):
        server_command(settings)
    monkeypatch.delenv(servers.PYTHON_VARIABLES[engine])
    monkeypatch.setattr(servers, "ENVIRONMENTS", tmp_path)
    with pytest.raises(ConfigError, match="make engines"):
        server_command(settings)
    monkeypatch.setenv(servers.PYTHON_VARIABLES[engine], sys.executable)
    monkeypatch.setattr(servers, "MODULES", dict.fromkeys(servers.MODULES, "no_such_package"))
    with pytest.raises(ConfigError, match="lacks the package no_such_package"):
        server_command(settings)


def test_transformers_serve_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .llmgym-rl\[train,serving\]"):
        server_command(replace(SETTINGS, engine="transformers"))


ENDPOINT = EndpointFile(
    url="http://127.0.0.1:8000/v1", engine="vllm", model="m", token=TOKEN, pid=1, log="x.log"
)


def test_the_file_of_an_endpoint_is_for_its_user_alone():
    path = write_endpoint(8000, ENDPOINT)
    assert path == endpoint_path(8000)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_endpoint("http://127.0.0.1:8000/v1") == ENDPOINT
    assert read_endpoint("http://127.0.0.1:8001/v1") is None
    assert read_endpoint("http://example.org:8000/v1") is None
    note_end(8000, 9)
    ended = read_endpoint("http://localhost:8000/v1")
    assert (ended.exit_code, ended.token) == (9, None)


def test_a_file_that_others_can_read_or_that_is_damaged_is_refused():
    path = write_endpoint(8000, ENDPOINT)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_endpoint(ENDPOINT.url)
    path.chmod(0o600)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        read_endpoint(ENDPOINT.url)
