"""A uniform export in plain transformers, vLLM and llama.cpp: the same tokens, and 16 clients."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import llama
from tests.unit.trainers.inference.fake_engine import free_port
from trainers.bench.endpoint import EndpointSettings, bench_endpoint
from trainers.compress.slicing import Variant, slice_model
from trainers.compress.units import geometry_of, uniform_plan
from trainers.export.int8 import export_int8
from trainers.export.smaller import ExpectedLogits, export_smaller
from trainers.inference.endpoint_files import read_endpoint
from trainers.models.chat import train_tokenizer
from trainers.models.loading import load_causal_lm

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]
QUESTIONS = ("12 + 34 = ", "a river", "\u00e9t\u00e9, 7?", "one two three four five six")
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model that lost a layer and half of its heads, in a plain folder with its tokenizer."""
    place = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer(["12 + 34 = 46", "a river one two three"], 300)
    dense = llama(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, intermediate_size=128, max_position_embeddings=256,
    ).eval()  # fmt: skip
    for held in (dense.config, dense.generation_config):
        held.bos_token_id, held.eos_token_id = None, tokenizer.eos_token_id
        held.pad_token_id = tokenizer.pad_token_id
    dense.save_pretrained(place / "dense")
    tokenizer.save_pretrained(place / "dense")
    geometry = geometry_of(dense.config)
    plan = uniform_plan(geometry, groups=1, channels=96, dropped=[1])

    def first(unit, choice):
        layer = dense.model.layers[unit.layer]
        is_attention = unit.kind == "attention"
        last = layer.self_attn.o_proj if is_attention else layer.mlp.down_proj
        width = choice.size * (64 if is_attention else 1)
        return Variant(torch.arange(width), last.weight.detach()[:, :width].clone())

    model = slice_model(dense, plan, first)
    model.generation_config = dense.generation_config
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = model(tokens).logits
    mask = torch.ones_like(tokens, dtype=torch.bool)
    expected = ExpectedLogits(tokens=tokens, mask=mask, logits=logits)
    export_smaller(place / "model", model, expected, {"title": "m"}, tokenizer=place / "dense")
    return place / "model", model


def prompt_ids(folder, question):
    """The tokens of a question as the chat template puts it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def written(folder, ids):
    """The most likely tokens that plain transformers writes, up to an end token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = []
    while len(made) < NEW_TOKENS:
        with torch.no_grad():
            token = int(model(torch.tensor([[*ids, *made]])).logits[0, -1].argmax())
        if token == model.generation_config.eos_token_id:
            break
        made.append(token)
    return made


def answered(url, engine, ids, eos):
    """The tokens that a server writes, without an end token."""
    endpoint = read_endpoint(url)
    connection = http.client.HTTPConnection("127.0.0.1", int(url.split(":")[2].split("/")[0]))
    body = {"model": endpoint.model, "prompt": ids, "temperature": 0.0}
    vllm = {"max_tokens": NEW_TOKENS, "return_token_ids": True}
    llama_cpp = {"n_predict": NEW_TOKENS, "return_tokens": True, "cache_prompt": False}
    path = "/v1/completions" if engine == "vllm" else "/completion"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.token}"}
    text = json.dumps({**body, **(vllm if engine == "vllm" else llama_cpp)})
    connection.request("POST", path, text, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    tokens = answer["choices"][0]["token_ids"] if engine == "vllm" else answer["tokens"]
    return [token for token in tokens if token != eos]


def serving(folder, engine, tmp_path, *words):
    """The process of `llmgym serve`, and the address of its server."""
    port = free_port()
    command = [sys.executable, "-m", "trainers.cli", "serve", str(folder), "--engine", engine,
               "--port", str(port), "--threads", "1", "--cache-gb", "0.25", *words]  # fmt: skip
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    return process, f"http://127.0.0.1:{port}/v1"


def test_the_export_in_plain_transformers_is_the_model_in_memory(exported):
    folder, model = exported
    tokens = torch.arange(60).reshape(3, 20)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (loaded(tokens).logits - model(tokens).logits).abs().max() < 1e-5


@pytest.mark.parametrize("engine", ["vllm", "llama-cpp"])
def test_an_engine_writes_the_same_tokens_and_serves_16_clients(
    exported, engine, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, _ = exported
    process, url = serving(folder, engine, tmp_path)
    try:
        settings = EndpointSettings(clients=(16,), requests=48, new_tokens=8)
        (figures,) = bench_endpoint(url, settings).figures
        assert (figures.sent, figures.failed) == (48, 0)
        eos = AutoTokenizer.from_pretrained(folder).eos_token_id
        for question in QUESTIONS:
            ids = prompt_ids(folder, question)
            assert answered(url, engine, ids, eos) == written(folder, ids)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert read_endpoint(url) is None


def test_vllm_reads_int8_folders(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    export_int8(exported[0], tmp_path / "int8")
    process, url = serving(tmp_path / "int8", "vllm", tmp_path, "--dtype", "float32")
    try:
        (figures,) = bench_endpoint(url, EndpointSettings(clients=(2,), requests=4)).figures
        assert figures.failed == 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    assert load_causal_lm(str(tmp_path / "int8")) is not None


def test_a_server_that_is_killed_is_told_with_its_exit_code(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process, url = serving(exported[0], "llama-cpp", tmp_path)
    bench_endpoint(url, EndpointSettings(clients=(1,), requests=1))
    os.kill(read_endpoint(url).pid, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
    time.sleep(0.1)
    assert "the server ended with exit code 137" in (tmp_path / "serve.log").read_text()
    assert read_endpoint(url).exit_code == 137
