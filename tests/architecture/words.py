"""The rules of words: public names, settings, metric keys and config files explain themselves."""

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tests.architecture.source import CODE, PACKAGES, Function, dotted, found, name, nodes, tree

SECTIONS = (
    "objective|policy|value|loss|rewards|env|completions|advantages|perf|timing_s|eval|train"
    "|sft|reward_model|distill"
)
METRIC = re.compile(rf"({SECTIONS})/[a-z0-9_{{}}./@]+")
TENSOR = re.compile(
    r"(torch\.)?Tensor\b|\w+\[Tensor, "
)  # itself, not an iterator or a dict of them
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
SHAPE = re.compile(r"\[[^\]\n]*\]")
SETTINGS = (
    "trainers/config/settings.py",
    "trainers/config/ppo.py",
    "trainers/config/distill.py",
    "trainers/config/reward_model.py",
    "trainers/config/text.py",
    "trainers/config/backend.py",
)
FORMER_WORDS = frozenset(
    ("farewell", "speaker", "judgement", "judgements", "judging", "usual", "peers", "verdict")
)
"""Words of names that the field has others for, and that do not come back."""
FORMER_NAMES = frozenset(("said", "found", "given", "wanted", "one"))
"""Names that do not tell what they hold: message, path, value, expected, row do."""
FORMER_PROSE = frozenset(
    [
        "farewell",
        "farewells",
        "speaker",
        "judgement",
        "judgements",
        "judging",
        "usual",
        "peers",
        "told",
        "heard",
        "said",
        "beside",
        "stands",
        "lies",
    ]
)
"""Words of first lines of docstrings that a plain sentence has others for."""
INTERFACES = {
    "trainers/cli": frozenset(("main", "Options", "Command")),
    "trainers/generation": frozenset(("check_engine", "make_generator")),
    "trainers/loggers": frozenset(("make_logger",)),
    "trainers/runner/stages": frozenset(("train_stage",)),
}
"""Names that the modules of a folder share: what is chosen by the name of its file."""
HEADER = ("Purpose", "Hardware", "Result", "Run")


def public(path: Path) -> Iterator[tuple[ast.ClassDef | Function, str]]:
    """Yield a file's public classes, functions and methods, each with its class's docstring."""
    for node in tree(path).body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield node, ""
        if isinstance(node, ast.ClassDef):
            above = ast.get_docstring(node) or ""
            members = (one for one in node.body if isinstance(one, Function))
            yield from ((one, above) for one in members if not one.name.startswith("_"))


def public_names_have_docstrings(root: Path) -> list[str]:
    """Every module, and every public class, function and method, has a docstring."""
    silent = []
    for path in found(root, *PACKAGES, "scripts"):
        if tree(path).body and not ast.get_docstring(tree(path)):
            silent.append(f"{name(root, path)}:1: no header: say what the file is")
        silent += [
            f"{name(root, path)}:{node.lineno}: {node.name} has no docstring"
            for node, _ in public(path)
            if not ast.get_docstring(node)
        ]
    return silent


def takes_tensors(node: ast.AST) -> bool:
    """Tell whether a function has a parameter annotated as a tensor."""
    if not isinstance(node, Function):
        return False
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    said = (ast.unparse(one.annotation) for one in every if one.annotation)
    return any(TENSOR.match(text) for text in said)


def tensors_have_shapes(root: Path) -> list[str]:
    """A public function that takes tensors says their shapes in brackets, as in [B, T]."""
    return [
        f"{name(root, path)}:{node.lineno}: {node.name} takes tensors and names no shape, as [B, T]"
        for path in found(root, "trainers")
        for node, above in public(path)
        if takes_tensors(node) and not SHAPE.search((ast.get_docstring(node) or "") + above)
    ]


def is_text(node: ast.AST | None) -> bool:
    """Tell whether a statement is a bare string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def settings_explain_themselves(root: Path) -> list[str]:
    """Every field of the settings is followed by its string, which is its --help."""
    return [
        f"{name(root, path)}:{field.lineno}: {owner.name}.{field.target.id} has no string under it"
        for path in found(root, "trainers")
        if name(root, path) in SETTINGS
        for owner in nodes(path)
        if isinstance(owner, ast.ClassDef)
        for field, after in zip(owner.body, [*owner.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if not is_text(after)
    ]


def family(key: str) -> str:
    """Give a metric key with its parts named by data left open: rewards/{}/mean."""
    return re.sub(r"\{[^}]*\}", "{}", key)


def literal(node: ast.AST) -> str:
    """Give the text of a string or an f-string, its expressions as {}; else nothing."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return family(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return ""


def metric_literals(path: Path) -> set[str]:
    """Give the literals of a file that look like a metric key, docstrings apart."""
    inside = {id(part) for n in nodes(path) if isinstance(n, ast.JoinedStr) for part in n.values}
    prose = {id(node.value) for node in nodes(path) if is_text(node)}
    kept = (node for node in nodes(path) if id(node) not in inside | prose)
    return {text for node in kept if METRIC.fullmatch(text := literal(node))}


def metrics_are_documented(root: Path) -> list[str]:
    """The metric keys in the source are the first column of docs/metrics.md, both ways."""
    page = root / "docs/metrics.md"
    if not page.exists():
        return []
    rows = (line.split("|")[1] for line in page.read_text("utf-8").splitlines() if line[:1] == "|")
    documented = {family(key) for row in rows for key in re.findall(r"`([^`]+)`", row)}
    used: dict[str, str] = {}
    for path in found(root, "trainers"):
        used |= dict.fromkeys(metric_literals(path), name(root, path))
    return [
        *(f"{used[key]}: {key} has no row in docs/metrics.md" for key in used.keys() - documented),
        *(f"docs/metrics.md: {key} is nowhere in trainers/" for key in documented - used.keys()),
    ]


def errors_are_raised(root: Path) -> list[str]:
    """A class of an errors.py is raised somewhere, or is the base of one that is."""
    defined = {
        node.name: f"{name(root, path)}:{node.lineno}"
        for path in found(root, *PACKAGES)
        if path.name == "errors.py"
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
    }
    used: set[str] = set()
    for path in found(root, *PACKAGES):
        for node in nodes(path):
            if isinstance(node, ast.Raise) and node.exc is not None:
                used.add(dotted(node.exc).rpartition(".")[2])
            elif isinstance(node, ast.Return | ast.Yield) and isinstance(node.value, ast.Call):
                used.add(dotted(node.value).rpartition(".")[2])  # made here, raised by the caller
            elif isinstance(node, ast.ClassDef):
                used |= {dotted(base).rpartition(".")[2] for base in node.bases}
    return [f"{place}: nothing raises {one}" for one, place in defined.items() if one not in used]


def config_files_have_headers(root: Path) -> list[str]:
    """A config file opens with purpose, hardware, result and the command that names it."""
    faults = []
    for path in sorted((root / "configs").rglob("*.yaml")):
        lines = path.read_text("utf-8").splitlines()
        comments = list(takewhile(lambda line: line.startswith("#"), lines))
        missing = [word for word in HEADER if not any(f"# {word}:" in one for one in comments)]
        faults += [f"{name(root, path)}: no line `# {word}:`" for word in missing]
        said = "\n".join(comments).partition("# Run:")[2]
        if not re.search(rf"\b{re.escape(path.stem)}\b", said):
            faults.append(f"{name(root, path)}: the command after `# Run:` does not name it")
    return faults


def words_of(nodes: Iterable[ast.AST]) -> set[str]:
    """Give the words, in lower case, of the names of classes and functions."""
    names = (node.name for node in nodes if isinstance(node, ast.ClassDef | Function))
    return {word.lower() for one in names for word in WORD.findall(one)}


def former_words_stay_away(root: Path) -> list[str]:
    """No file, class or function of trainers/ is named by a word that the field has another for."""
    return [
        f"{name(root, path)}: the word {word} is a former one: use the field's"
        for path in found(root, "trainers")
        for word in sorted((words_of(nodes(path)) | set(path.stem.split("_"))) & FORMER_WORDS)
    ]


def assigned(target: ast.AST) -> Iterator[str]:
    """Yield the names that a target of an assignment binds."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from assigned(part)


def module_names(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the public names that a module defines, with their lines; imports do not count."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | Function):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [name for target in node.targets for name in assigned(target)]
        elif isinstance(node, ast.AnnAssign):
            names = list(assigned(node.target))
        else:
            continue
        yield from ((name, node.lineno) for name in names if not name.startswith("_"))


def public_names_are_unique(root: Path) -> list[str]:
    """No public name of trainers/ is defined in two modules; an __init__ only hands names on."""
    first: dict[str, str] = {}
    twice = []
    for path in found(root, "trainers"):
        file = name(root, path)
        if path.name == "__init__.py":
            continue
        exempt = INTERFACES.get(file.rpartition("/")[0], frozenset())
        for public_name, line in module_names(path):
            other = first.setdefault(public_name, file)
            if other != file and public_name not in exempt:
                twice.append(f"{file}:{line}: {public_name} is a public name of {other} too")
    return twice


def bound(node: ast.AST) -> str:
    """Give the name that a node binds: of a variable, field, parameter, function or class."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    if isinstance(node, ast.arg):
        return node.arg
    return node.name if isinstance(node, ast.ClassDef | Function) else ""


def names_tell_what_they_hold(root: Path) -> list[str]:
    """No variable, parameter, function or class has one of the names that tell nothing."""
    return [
        f"{name(root, path)}:{node.lineno}: {bound(node)} does not tell what it holds: name that"
        for path in found(root, *CODE)
        for node in nodes(path)
        if bound(node).strip("_").lower() in FORMER_NAMES
    ]


def first_lines_are_plain(root: Path) -> list[str]:
    """No first line of a docstring has a word for which a plain sentence has another."""
    return [
        f"{name(root, path)}:{getattr(node, 'lineno', 1)}: first line of a docstring: {word}"
        for path in found(root, *CODE)
        for node in nodes(path)
        if isinstance(node, ast.Module | ast.ClassDef | Function)
        for first in (ast.get_docstring(node) or "").splitlines()[:1]
        for word in sorted(set(re.findall(r"[a-z]+", first.lower())) & FORMER_PROSE)
    ]


RULES = (
    former_words_stay_away,
    names_tell_what_they_hold,
    first_lines_are_plain,
    public_names_are_unique,
    public_names_have_docstrings,
    tensors_have_shapes,
    settings_explain_themselves,
    metrics_are_documented,
    errors_are_raised,
    config_files_have_headers,
)
