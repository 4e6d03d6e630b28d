"""The rules of shape: short files and functions, plain names, classes abstract or final."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import (
    ALL,
    CODE,
    PACKAGES,
    dotted,
    found,
    functions,
    imports,
    module,
    name,
    nodes,
)

MAX_FILE_LINES, MAX_FUNCTION_LINES = 360, 60
BAD_NAME = re.compile(r"(^|[./])(utils|helpers|common|misc)($|\.)|_(v\d+|old|new|legacy)($|\.)")
EXCEPTION = re.compile(r"(Error|Exception|Warning|NotFound)$")
WRITERS = {
    "trainers/redaction/text_files.py": "the door",
    "trainers/export/folders.py": "model folders; a card is redacted as it is rendered",
    "trainers/models/critic_folders.py": "model folders",
    "trainers/checkpoint/manifest.py": "its digest is of its text; settings come without secrets",
    "trainers/checkpoint/state_files.py": "states; the session hands them texts without secrets",
    "trainers/run_dir/lock.py": "host and process",
    "trainers/distributed/watchdog.py": "places in code",
    "trainers/cli/scaffold.py": "templates, outside of a run",
    "trainers/bench/worker.py": "answers to the process that started it",
    "trainers/inference/endpoint_files.py": "the token of a server, for its user alone",
    "trainers/inference/server_process.py": "what a server prints, which has no settings",
    "trainers/generation/serving/process.py": "what a worker prints, which has no settings",
    "trainers/generation/serving/vllm_engine.py": "the config.json of a model",
    "trainers/generation/serving/weights.py": "bytes of tensors",
}
"""Files of trainers/ that write text, and why it is without secrets."""
SKIPS = ("pytest.skip", "pytest.mark.skip", "unittest.skip")


def files_are_short(root: Path) -> list[str]:
    """No file is longer than 360 lines."""
    lengths = {path: path.read_text("utf-8").count("\n") for path in found(root, *ALL)}
    return [
        f"{name(root, path)}: {lines} lines, over {MAX_FILE_LINES}: split it"
        for path, lines in lengths.items()
        if lines > MAX_FILE_LINES
    ]


def functions_are_short(root: Path) -> list[str]:
    """No function is longer than 60 lines."""
    return [
        f"{name(root, path)}:{one.lineno}: {one.name} has {lines} lines, over {MAX_FUNCTION_LINES}"
        for path in found(root, *ALL)
        for one in functions(path)
        if (lines := (one.end_lineno or 0) - one.lineno + 1) > MAX_FUNCTION_LINES
    ]


def names_say_what_is_held(root: Path) -> list[str]:
    """No drawer modules, no second generations."""
    return [
        f"{name(root, path)}: name it for what it holds"
        for path in found(root, *ALL)
        if BAD_NAME.search(module(root, path))
    ]


def code_is_ascii(root: Path) -> list[str]:
    """Code is ASCII; other text stands as escapes."""
    return [
        f"{name(root, path)}:{number}: not ASCII: write an escape"
        for path in found(root, *ALL)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if not line.isascii()
    ]


def no_test_skips_itself(root: Path) -> list[str]:
    """What is skipped is decided in conftest, from markers."""
    faults = []
    for path in found(root, "tests"):
        for node in nodes(path) if name(root, path) != "tests/conftest.py" else ():
            said = dotted(node) if isinstance(node, ast.Attribute) else ""
            if said in SKIPS or said.endswith(("skipif", "importorskip")):
                faults.append(f"{name(root, path)}:{node.lineno}: {said}: use a marker")
        faults += [
            f"{name(root, path)}:{one.line}: {one.target}: use a marker"
            for one in imports(path)
            if one.target in ("pytest.skip", "pytest.importorskip", "unittest.skip")
        ]
    return faults


def no_probing(root: Path) -> list[str]:
    """No `hasattr`: a type says what an object has."""
    return [
        f"{name(root, path)}:{node.lineno}: hasattr: a type says what an object has"
        for path in found(root, *CODE)
        for node in nodes(path)
        if isinstance(node, ast.Call) and dotted(node.func) == "hasattr"
    ]


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Yield every class of a file."""
    yield from (node for node in nodes(path) if isinstance(node, ast.ClassDef))


def bases(node: ast.ClassDef) -> list[str]:
    """List the last words of a class's bases."""
    return [dotted(base).split(".")[-1] for base in node.bases]


def is_abstract(node: ast.ClassDef) -> bool:
    """Tell whether a class is meant to be derived from."""
    metaclass = any(dotted(keyword.value).endswith("ABCMeta") for keyword in node.keywords)
    abstract = any(
        dotted(decorator).endswith("abstractmethod")
        for function in ast.walk(node)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in function.decorator_list
    )
    return metaclass or abstract or bool({"ABC", "Protocol"} & set(bases(node)))


def classes_are_abstract_or_final(root: Path) -> list[str]:
    """In trainers/ no class derives from a concrete class of ours; exceptions may."""
    every = [node for path in found(root, *PACKAGES) for node in classes(path)]
    concrete = {c.name for c in every if not is_abstract(c) and not EXCEPTION.search(c.name)}
    return [
        f"{name(root, path)}:{node.lineno}: {node.name} derives from {base}, which is concrete"
        for path in found(root, "trainers")
        for node in classes(path)
        for base in bases(node)
        if base in concrete
    ]


def writes_text(node: ast.AST) -> bool:
    """Tell whether a node is a call that writes a file: write_text, json.dump, open for writing."""
    if not isinstance(node, ast.Call):
        return False
    call = dotted(node.func)
    if call == "json.dump" or call.endswith(("write_text", "write_bytes")):
        return True
    words = [*node.args, *(one.value for one in node.keywords)]
    texts = [one.value for one in words if isinstance(one, ast.Constant)]
    modes = [one for one in texts if isinstance(one, str) and re.fullmatch(r"[wax][bt+]*", one)]
    return call.endswith("open") and bool(modes)


def texts_are_written_through_one_door(root: Path) -> list[str]:
    """In trainers/ text_files.py writes text, without secrets; a few files do, with a reason."""
    return [
        f"{name(root, path)}:{node.lineno}: writes a file: use trainers/redaction/text_files.py"
        for path in found(root, "trainers")
        if name(root, path) not in WRITERS
        for node in nodes(path)
        if isinstance(node, ast.Call) and writes_text(node)
    ]


RULES = (
    texts_are_written_through_one_door,
    files_are_short,
    functions_are_short,
    names_say_what_is_held,
    code_is_ascii,
    no_test_skips_itself,
    no_probing,
    classes_are_abstract_or_final,
)
