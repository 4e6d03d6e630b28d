"""Importing the package: fast, and with numpy and gymnasium only."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TOYS = Path(__file__).parent / "toys.py"

# Refuses to find any package but the standard library, the two that are needed, and theirs.
BARE = """
import sys
ALLOWED = {"llmgym", "numpy", "gymnasium", "cloudpickle", "typing_extensions",
           "farama_notifications", *sys.stdlib_module_names}
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"bare environment: no {name}", name=name)
sys.meta_path.insert(0, Bare())
"""


def python(code, path=()):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )


def test_a_bare_environment_is_enough_to_play():
    code = BARE + (
        "import gymnasium as gym, llmgym\n"
        "env = gym.make('llmgym/Arithmetic-v0'); env.reset(seed=0)\n"
        "envs = gym.make_vec('llmgym/Arithmetic-v0', num_envs=2); envs.reset(seed=0)\n"
        "print(env.step(env.unwrapped.solve())[1], envs.step(['', ''])[1].sum())\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0", "0.0"]


def test_the_import_loads_nothing_heavy():
    heavy = "torch transformers datasets pyarrow pandas scipy pydantic tyro wandb"
    code = f"import sys, llmgym; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"


def test_the_import_takes_less_than_half_a_second():
    code = "import time; t = time.process_time(); import llmgym; print(time.process_time() - t)"
    assert min(float(python(code).stdout) for _ in range(3)) < 0.5


def test_an_installed_plugin_is_visible_in_a_new_process_and_a_broken_one_only_warns(tmp_path):
    for name, text in (
        ("plug_good", f"import llmgym\nllmgym.register('plug/Say-v0', {f'{TOYS}:say'!r})\n"),
        ("plug_bad", "import no_such_package\n"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[llmgym.envs]\nx = {name}\n")
    code = "import gymnasium, llmgym; print(gymnasium.make('plug/Say-v0').reset(seed=0)[1]['task'])"
    done = python(code, [tmp_path])
    assert done.stdout.strip() == "toy", done.stderr
    assert "RuntimeWarning" in done.stderr
    assert "no_such_package" in done.stderr
