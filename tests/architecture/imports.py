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
    "trainers.errors trainers.batch trainers.redaction",
    "trainers.config trainers.distributed",
    "trainers.functional trainers.checkpoint",
    "trainers.models trainers.run_dir",
    "trainers.backends trainers.generation trainers.export trainers.loggers",
    "trainers.learner trainers.collect trainers.supervised trainers.report trainers.compress",
    "trainers.ppo trainers.evaluation trainers.plan",
    "trainers.distillation",
    "trainers.runner",
    "trainers.inference",
    "trainers.bench",
    "trainers.cli",
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms.split()}
DOORS = {
    "deepspeed": "trainers/backends/zero/engine.py",
    "wandb": "trainers/loggers/wandb.py",
    "datasets": "llmgym/data/tasks.py",
    "peft": "trainers/models/adapters.py",
    "gguf": "trainers/models/gguf.py",
    "xllamacpp": "trainers/inference/llama_cpp_starter.py",
    "tensorboard": "trainers/loggers/tensorboard.py",
    "vllm": "trainers/generation/serving/vllm_engine.py",
    "math_verify": "llmgym/rewards/algebra.py",
    "mcp": "llmgym/tools/mcp_servers.py",
    "reasoning_gym": "llmgym/adapters/reasoning_gym.py",
    "gem": "llmgym/adapters/gem.py",
    "textarena": "llmgym/adapters/textarena.py",
    "minigrid": "llmgym/adapters/minigrid.py",
    "accelerate": "nobody",  # installed with the extra `train`, never imported by us
}
PEERS = "scripts/bench/workers/"
"""What measures other projects runs their libraries as they are, in environments of their own."""
NO_TORCH = (
    "trainers/__init__.py",
    "trainers/errors.py",
    "trainers/redaction/",
    "trainers/config/",
    "trainers/run_dir/",
    "trainers/distributed/launcher.py",
    "trainers/backends/__init__.py",
    "trainers/backends/zero/__init__.py",
    "trainers/backends/zero/builds.py",
    "trainers/backends/zero/json.py",
    "trainers/backends/zero/keys.py",
    "trainers/generation/serving/__init__.py",
    "trainers/generation/serving/client.py",
    "trainers/generation/serving/pool.py",
    "trainers/generation/serving/process.py",
    "trainers/generation/serving/protocol.py",
    "trainers/generation/serving/server.py",
    "trainers/generation/serving/worker.py",
    "trainers/collect/environments.py",
    "trainers/compress/baselines.py",
    "trainers/compress/spaces.py",
    "trainers/compress/units.py",
    "trainers/loggers/formatting.py",
    "trainers/inference/targets.py",
    "trainers/inference/endpoint_files.py",
    "trainers/inference/llama_cpp_starter.py",
    "trainers/inference/server_process.py",
    "trainers/inference/servers.py",
    "trainers/bench/load.py",
    "trainers/bench/requests.py",
    "trainers/cli/__init__.py",
    "trainers/cli/main.py",
    "trainers/cli/early.py",
    "trainers/cli/folders.py",
    "trainers/cli/train.py",
)
"""Rooms, and files of other rooms, that import neither torch nor transformers."""
# `trainers.run` is found on first use, by the module's __getattr__; nothing is imported before.
ON_FIRST_USE = {"trainers/__init__.py": "trainers.runner.run.run"}


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
        and not name(root, path).startswith((DOORS[library], PEERS))
    ]


def floors_table() -> str:
    """Return the table of CONTRIBUTING.md: each floor and its rooms."""
    rows = ["| floor | rooms |", "| --- | --- |"]
    for level, rooms in enumerate(FLOORS):
        inside = [room.removeprefix("trainers.") for room in rooms.split() if room != "trainers"]
        rows.append(f"| {level} | {' '.join(f'`{room}`' for room in inside)} |")
    return "\n".join(rows) + "\n"


def contributing_lists_the_floors(root: Path) -> list[str]:
    """The table of floors in CONTRIBUTING.md is made of FLOORS."""
    if floors_table() in (root / "CONTRIBUTING.md").read_text("utf-8"):
        return []
    return [f"CONTRIBUTING.md: the table of floors is not FLOORS; it is\n{floors_table()}"]


def doors_exist(root: Path) -> list[str]:
    """Each door is a file: one that moved takes its entry along."""
    return [
        f"{door}: the door of {library} is no file: correct DOORS"
        for library, door in DOORS.items()
        if door != "nobody" and not (root / door).is_file()
    ]


def is_torch_free(root: Path, path: Path) -> bool:
    """Tell whether a file must not import torch or transformers."""
    here = name(root, path)
    says_so = "Needs: torch" in (ast.get_docstring(tree(path)) or "")
    may = says_so and here.startswith(("llmgym/envs/", "llmgym/rewards/model"))
    return here.startswith(NO_TORCH) or (here.startswith("llmgym/") and not may)


def torch_stays_out(root: Path) -> list[str]:
    """The light files import neither torch nor transformers."""
    return [
        f"{name(root, path)}:{one.line}: imports {one.target}; it must not"
        for path in found(root, *PACKAGES)
        for one in imports(path)
        if one.target.split(".")[0] in ("torch", "transformers") and is_torch_free(root, path)
    ]


def one_file_imports_by_name(root: Path) -> list[str]:
    """`import_module` and `__import__` stand in llmgym/addresses.py only."""
    return [
        f"{name(root, path)}:{node.lineno}: imports by name: only llmgym/addresses.py may"
        for path in found(root, *CODE)
        if name(root, path) != "llmgym/addresses.py"
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
    doors_exist,
    contributing_lists_the_floors,
    torch_stays_out,
    one_file_imports_by_name,
)
