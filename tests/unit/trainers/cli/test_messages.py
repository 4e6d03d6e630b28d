"""What a message tells a reader to type exists: every option, setting and verb that it names."""

import ast
import dataclasses
import re

import pytest

from tests.architecture.source import PACKAGES, ROOT, found, name, nodes
from trainers.cli import (
    bench,
    compress,
    data,
    envs,
    eval,
    export,
    launch,
    play,
    report,
    rewards,
    runs,
    serve,
)
from trainers.cli import schema as schema_verb
from trainers.cli.arguments import OPTIONS as START
from trainers.cli.main import VERBS
from trainers.config import schema
from trainers.config.compression import CompressionSettings

VERBS_OPTIONS = (eval.Options, play.Options, export.Options, schema_verb.Options)
VERBS_OPTIONS += (envs.ListEnvs, envs.Show, envs.Check, envs.New, rewards.Options, data.Options)
VERBS_OPTIONS += (envs.Bench, envs.AuditEnvs, bench.Options, serve.Options)
VERBS_OPTIONS += (compress.Options, CompressionSettings)
VERBS_OPTIONS += (report.Options, runs.ListRuns, runs.Diff, launch.Options)
FREE = ("envs.0.kwargs.", "rewards.0.kwargs.", "eval.kwargs.")
"""Arguments of environments and rewards: their names are theirs."""
OF_OTHERS = {"nproc_per_node", "local_rank", "nnodes", "node_rank", "master_addr", "master_port"}
OF_OTHERS |= {"child", "host", "port", "no_deps", "upgrade"}  # of a generation server, and of pip
OF_OTHERS |= {"api_key", "enable_lora", "enforce_eager", "kv_cache_memory_bytes", "lora_modules"}
OF_OTHERS |= {"max_model_len", "max_num_seqs", "served_model_name", "speculative_config"}
OF_OTHERS |= {"tensor_parallel_size"}  # of vLLM's server
OF_OTHERS |= {"standalone", "num_accelerators", "force_multi", "signal", "time", "kill_on_bad_exit"}
"""Options of launchers."""
FILES = {"tokenizer.json", "run.lock", "tokenizer.pad_token", "tokenizer.eos_token"}
FILES |= {"tokenizer.ggml"}
"""Names of files, of keys in them, and of attributes in a line of Python."""
SECTIONS = ["run", "tokenizer", "sft", "ppo", "generation", "backend", "eval", "checkpoint"]
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*[\w])")
SETTING = re.compile(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})\.[a-z][a-z_-]*)(?![\w(])")
VERB = re.compile(r"\bllmgym ([a-z]+)(?= (?:--|[A-Z]|runs/))|`llmgym ([a-z]+)")


def texts(path):
    """Yield every text of a file that is no docstring, with its line."""
    docs = {
        id(node.body[0].value)
        for node in nodes(path)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def known_options():
    """Return the options of every verb, with underscores."""
    known = {word for line in START for word in re.findall(r"--([a-z_-]+)", line)}
    known |= {field.name for kind in VERBS_OPTIONS for field in dataclasses.fields(kind)}
    known |= {"from", "no_int8"}  # `envs audit` names a field otherwise, and tyro writes a negation
    return {one.replace("-", "_") for one in known | {"help", "debug"}} | OF_OTHERS


def is_setting(dotted):
    """Tell whether a dotted name is a setting, a section, or an argument below one."""
    if dotted.startswith(FREE):
        return True
    return schema.at(tuple(int(x) if x.isdigit() else x for x in dotted.split("."))) is not None


@pytest.mark.parametrize("path", found(ROOT, *PACKAGES), ids=lambda path: name(ROOT, path))
def test_every_option_setting_and_verb_in_a_text_exists(path):
    options = known_options()
    unknown = []
    for line, text in texts(path):
        for option in OPTION.findall(text):
            plain = option.replace("-", "_")
            if plain not in options and not is_setting(plain):
                unknown.append((line, f"--{option}"))
        settings = {one.replace("-", "_") for one in SETTING.findall(text)} - FILES
        unknown += [(line, one) for one in settings if not is_setting(one)]
        verbs = [one or other for one, other in VERB.findall(text)]
        unknown += [(line, f"llmgym {one}") for one in verbs if one not in VERBS]
    assert not unknown


def test_a_text_that_names_what_is_not_there_is_found():
    texts = "--ppo.gama --resum ppo.num_epoch `llmgym tran` llmgym eva runs/a"
    assert OPTION.findall(texts) == ["ppo.gama", "resum"]
    assert not any(map(is_setting, (*OPTION.findall(texts), *SETTING.findall(texts))))
    assert SETTING.findall(texts) == ["ppo.num_epoch"]
    assert [one or other for one, other in VERB.findall(texts)] == ["tran", "eva"]
    assert is_setting("ppo.num_epochs")
    assert is_setting("rewards.0.function")
