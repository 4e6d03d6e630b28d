"""Reads a source tree as the rules need it: paths, module names, parsed code, imports.

It knows no rule. Every function takes the root of a tree, so that faults can be planted in a copy.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("llmgym", "trainers")
CODE = (*PACKAGES, "scripts")
ALL = (*CODE, "tests")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: `from a.b import c` gives a.b.c."""

    target: str
    line: int
    relative: bool
    lazy: bool


def found(root: Path, *tops: str) -> list[Path]:
    """List the Python files under the folders `tops`."""
    return sorted(path for top in tops for path in (root / top).rglob("*.py"))


def name(root: Path, path: Path) -> str:
    """Give the path of a file from the root, with slashes."""
    return path.relative_to(root).as_posix()


def module(root: Path, path: Path) -> str:
    """Give the dotted name under which a file is imported."""
    return name(root, path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree(path: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """List every node of a file, those inside functions too."""
    return tuple(ast.walk(tree(path)))


def functions(path: Path) -> list[Function]:
    """List every function of a file, methods and inner functions too."""
    return [node for node in nodes(path) if isinstance(node, Function)]


def imports(path: Path) -> Iterator[Import]:
    """Yield what a file imports, anywhere in it: lazy and typing-only imports count."""
    inside = {id(node) for function in functions(path) for node in ast.walk(function)}
    for node in nodes(path):
        if isinstance(node, ast.Import):
            targets, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            targets, level = [f"{node.module}.{alias.name}" for alias in node.names], node.level
        else:
            continue
        lazy = id(node) in inside
        for target in targets:
            yield Import(target=target, line=node.lineno, relative=level > 0, lazy=lazy)


def owner(root: Path, target: str) -> str:
    """Give the module of the tree that an imported name is or stands in; "" if it has none."""
    while target and not any(
        (root / f"{target.replace('.', '/')}{end}").is_file() for end in (".py", "/__init__.py")
    ):
        target = target.rpartition(".")[0]
    return target


def dotted(node: ast.AST) -> str:
    """Give `a.b.c` for a name or a chain of attributes, without calls and subscripts."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Call):
        return dotted(node.func)
    return ""
