"""The rules of imports: they point down, each library has its door, some files stay light."""

import ast
import graphlib
from pathlib import Path

from tests.architecture.source import (
    CODE,
    PACKAGES,
    Import,
    dotted,
    found,
    imports,
    module,
    name,
    nodes,
    owner,
    tree,
)

FLOORS = (
    "llmgym trainers",  # two rooms; "trainers" alone is its __init__, which imports nothing
    "trainers.errors trainers.config trainers.config_ppo trainers.config_reward_model "
    "trainers.config_backend trainers.config_text "
    "trainers.config_schema trainers.config_files trainers.config_secrets trainers.redaction "
    "trainers.text_files trainers.shares trainers.batch",
    "trainers.functional trainers.distributed trainers.environments trainers.launcher "
    "trainers.python_parts trainers.trust",
    "trainers.models",
    "trainers.backends trainers.generation",
    "trainers.learner trainers.collect",
    "trainers.ppo trainers.ppo_metrics trainers.sft trainers.demonstrations trainers.reward_model "
    "trainers.epochs trainers.judgements trainers.run_lock "
    "trainers.compress trainers.run_record trainers.checkpoint",  # a folder, read by the next floor
    "trainers.run_folder trainers.evaluate trainers.export trainers.loggers trainers.plan "
    "trainers.serve",
    "trainers.report",  # it shows what the loggers wrote
    "trainers.runner",
    "trainers.cli",
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms.split()}
DOORS = {
    "deepspeed": "trainers/backends/deepspeed.py",
    "vllm": "trainers/generation/vllm.py",
    "wandb": "trainers/loggers/wandb.py",
    "datasets": "llmgym/tasks.py",
    "peft": "trainers/models/adapters.py",
    "gguf": "trainers/models/gguf.py",
    "optuna": "trainers/cli/sweep.py",
    "httpx": "llmgym/remote.py",
    "tenacity": "llmgym/remote.py",
    "math_verify": "llmgym/rewards/algebra.py",
    "reasoning_gym": "llmgym/envs/reasoning.py",
    "fastapi": "trainers/serve/ llmgym/server.py",
    "uvicorn": "trainers/serve/ llmgym/server.py",
    "accelerate": "nobody",  # installed with the extra `train`, never imported by us
}
NO_TORCH = (
    "trainers/__init__.py",
    "trainers/errors.py",
    "trainers/config.py",
    "trainers/config_ppo.py",
    "trainers/config_reward_model.py",
    "trainers/config_text.py",
    "trainers/config_backend.py",
    "trainers/config_schema.py",
    "trainers/config_files.py",
    "trainers/config_secrets.py",
    "trainers/redaction.py",
    "trainers/text_files.py",
    "trainers/shares.py",
    "trainers/environments.py",
    "trainers/launcher.py",
    "trainers/python_parts.py",
    "trainers/trust.py",
    "trainers/run_record.py",
    "trainers/loggers/lines.py",
    "trainers/cli/__init__.py",
    "trainers/cli/early.py",
    "trainers/cli/folders.py",
    "trainers/cli/targets.py",
    "trainers/cli/train.py",
    "trainers/backends/__init__.py",
    "trainers/backends/builds.py",
    "trainers/backends/zero_config.py",
    "trainers/backends/zero_keys.py",
)
# `trainers.run` is found on first use, by the module's __getattr__; nothing is imported before.
ON_FIRST_USE = {"trainers/__init__.py": "trainers.runner.run"}


def place(root: Path, target: str) -> tuple[int, str] | None:
    """Give the floor and the room of a module of ours; None if it has no floor."""
    parts = target.split(".")
    prefix = ".".join(parts[: 1 if parts[0] == "llmgym" else 2])
    if prefix not in LEVEL:
        return None
    is_folder = (root / prefix.replace(".", "/")).is_dir()
    return LEVEL[prefix], prefix if is_folder else "loose"


def points_down(root: Path, path: Path, one: Import) -> str | None:
    """Say what is wrong with one import of a file, as far as floors go."""
    ours = one.target.split(".")[0] in PACKAGES
    if not ours or (one.lazy and one.target == ON_FIRST_USE.get(name(root, path))):
        return None
    here = place(root, module(root, path))
    there = place(root, one.target) or place(root, owner(root, one.target))
    if here is None or there is None:
        return None  # the rule above names the file
    if there[0] < here[0] or there == here:
        return None
    return f"on floor {here[0]} imports {one.target}, on floor {there[0]}"


def every_file_has_a_floor(root: Path) -> list[str]:
    """Each file of the two packages stands on a floor."""
    lost = (p for p in found(root, *PACKAGES) if place(root, module(root, p)) is None)
    return [f"{name(root, path)}: has no floor: give it one in FLOORS" for path in lost]


def imports_point_down(root: Path) -> list[str]:
    """A module imports from floors below its own, or from its own room."""
    return [
        f"{name(root, path)}:{one.line}: {fault}"
        for path in found(root, *PACKAGES)
        for one in imports(path)
        if not one.relative and (fault := points_down(root, path, one))
    ]


def imports_are_absolute(root: Path) -> list[str]:
    """No relative import."""
    return [
        f"{name(root, path)}:{one.line}: relative import: write it out"
        for path in found(root, *CODE, "tests")
        for one in imports(path)
        if one.relative
    ]


def no_import_cycle(root: Path) -> list[str]:
    """No two modules need each other."""
    ours = {module(root, path): path for path in found(root, *PACKAGES)}
    edges = {
        one: {
            owner(root, other.target)
            for other in imports(path)
            if not (other.lazy and name(root, path) in ON_FIRST_USE)
        }
        & (ours.keys() - {one})
        for one, path in ours.items()
    }
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return ["cycle: " + " -> ".join(error.args[1])]
    return []


def libraries_have_doors(root: Path) -> list[str]:
    """An optional, heavy or moving library is imported in one place."""
    return [
        f"{name(root, path)}:{one.line}: imports {library}: only {DOORS[library]} may"
        for path in found(root, *CODE)
        for one in imports(path)
        if (library := one.target.split(".")[0]) in DOORS
        and not name(root, path).startswith(tuple(DOORS[library].split()))
    ]


def is_torch_free(root: Path, path: Path) -> bool:
    """Tell whether a file must not import torch or transformers."""
    here = name(root, path)
    says_so = "Needs: torch" in (ast.get_docstring(tree(path)) or "")
    may = says_so and here.startswith(("llmgym/envs/", "llmgym/rewards/model.py"))
    return here in NO_TORCH or (here.startswith("llmgym/") and not may)


def torch_stays_out(root: Path) -> list[str]:
    """The light files import neither torch nor transformers."""
    return [
        f"{name(root, path)}:{one.line}: imports {one.target}; it must not"
        for path in found(root, *PACKAGES)
        for one in imports(path)
        if one.target.split(".")[0] in ("torch", "transformers") and is_torch_free(root, path)
    ]


def only_the_registry_imports_by_name(root: Path) -> list[str]:
    """`import_module` and `__import__` stand in llmgym/registry.py only."""
    return [
        f"{name(root, path)}:{node.lineno}: imports by name: only llmgym/registry.py may"
        for path in found(root, *CODE)
        if name(root, path) != "llmgym/registry.py"
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and dotted(node.func).split(".")[-1] in ("import_module", "__import__")
    ]


RULES = (
    every_file_has_a_floor,
    imports_point_down,
    imports_are_absolute,
    no_import_cycle,
    libraries_have_doors,
    torch_stays_out,
    only_the_registry_imports_by_name,
)
