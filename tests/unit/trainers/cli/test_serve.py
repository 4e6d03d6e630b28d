"""`llmgym serve`: what it starts, prints and leaves behind, and what it refuses before that."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_model
from tests.unit.trainers.inference.fake_engine import fake_python, free_port
from trainers.bench.endpoint import EndpointSettings, bench_endpoint
from trainers.cli import main as cli
from trainers.inference import servers, serving
from trainers.inference.endpoint_files import endpoint_path, read_endpoint
from trainers.inference.servers import ServeSettings
from trainers.inference.serving import chat_of, prepared, with_end_tokens

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("serve") / "model")


@pytest.fixture(autouse=True)
def _engine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMGYM_LLAMA_CPP_PYTHON", str(fake_python(tmp_path / "engine")))
    monkeypatch.delenv("LLMGYM_VLLM_PYTHON", raising=False)
    monkeypatch.delenv("LLMGYM_ENDPOINT_TOKEN", raising=False)


@pytest.mark.gguf
def test_a_folder_is_served_until_sigterm_and_the_token_is_seen_nowhere(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", TOKEN)
    port, log = free_port(), tmp_path / "serve.log"
    words = ["serve", str(folder), "--engine", "llama-cpp", "--port", str(port)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.cli", *words], stdout=stream, stderr=stream
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        few = EndpointSettings(clients=(2,), requests=4, wait_seconds=240.0)
        assert bench_endpoint(url, few).figures[0].failed == 0
        endpoint = read_endpoint(url)
        arguments = Path(f"/proc/{endpoint.pid}/cmdline").read_bytes()
        assert (endpoint.token, endpoint.engine) == (TOKEN, "llama-cpp")
        assert TOKEN.encode() not in arguments
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    printed = log.read_text()
    assert code == 0, printed
    assert TOKEN not in printed + Path(endpoint.log).read_text()
    assert "was converted to GGUF (float32)" in printed
    assert f"llmgym bench --endpoint {url}" in printed
    assert not endpoint_path(port).exists()


def refused(words, capsys):
    assert cli.main(["serve", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_served_is_refused_before_anything_starts(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(servers, "ENVIRONMENTS", tmp_path)
    ours = [folder, "--engine", "llama-cpp"]
    assert "vllm is not installed" in refused([folder], capsys)
    monkeypatch.setattr(servers, "find_spec", lambda name: name)
    other = [folder, "--engine", "transformers"]
    assert "listens on loopback only" in refused([*other, "--host", "0.0.0.0"], capsys)
    assert "takes 64 tokens" in refused([*ours, "--context", 100], capsys)
    assert "--rows must be at least 1" in refused([*ours, "--rows", 0], capsys)
    assert "no adapter_config.json" in refused([*ours, "--adapters", "a=b"], capsys)
    assert "takes no --engine-args" in refused([*ours, "--engine-args=-x"], capsys)
    assert "set the variable" in refused([*other, "--engine-args=--api-key x"], capsys)
    assert "serves int8 from a folder" in refused([*other, "--dtype", "int8"], capsys)
    monkeypatch.setenv("LLMGYM_ENDPOINT_TOKEN", "short")
    assert "is shorter than 16" in refused(ours, capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot be listened at" in refused([*ours, "--port", port], capsys)


def test_a_drafter_of_another_vocabulary_is_refused(folder, tmp_path, capsys):
    other = save_model(tmp_path / "other")
    file = other / "tokenizer.json"
    described = json.loads(file.read_text())
    described["model"]["vocab"]["zz"] = max(described["model"]["vocab"].values()) + 1
    file.write_text(json.dumps(described))
    words = [folder, "--engine", "llama-cpp", "--drafter", other]
    assert "has another vocabulary" in refused(words, capsys)


def test_a_folder_that_names_every_end_token_is_served_as_it_is(folder, tmp_path):
    chat = chat_of(str(folder))
    made = with_end_tokens(str(folder), chat, tmp_path)
    assert made != str(folder)  # whose generation_config.json names none
    described = json.loads((Path(made) / "generation_config.json").read_text())
    assert described["eos_token_id"] == list(chat.eos_token_ids)
    assert (Path(made) / "model.safetensors").resolve() == (folder / "model.safetensors").resolve()
    again = tmp_path / "again"
    again.mkdir()
    assert with_end_tokens(made, chat, again) == made
    assert with_end_tokens(str(folder), None, again) == str(folder)


def test_type_and_context_are_those_of_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(serving.torch.cuda, "is_available", lambda: False)
    asked = ServeSettings(
        engine="vllm", model=str(folder), name="m", dtype="auto", context=0, cache_gb=0.5
    )
    served = prepared(asked, tmp_path).settings
    assert (served.dtype, served.context, served.cache_gb) == ("float32", 64, 0.5)
