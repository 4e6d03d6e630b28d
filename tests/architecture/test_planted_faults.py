"""Plants one fault a time in a small tree that is otherwise in order, and sees it refused."""

import pytest

from tests.architecture import imports, shape, words
from tests.architecture.test_house import RULES

IN_ORDER = {
    "llmgym/__init__.py": '"""The environments."""\n',
    "llmgym/addresses.py": (
        '"""Names."""\nimport importlib\n\nM = importlib.import_module("json")\n'
    ),
    "llmgym/envs/model.py": '"""Scored by a model.\n\nNeeds: torch\n"""\nimport torch\n',
    "trainers/__init__.py": (
        '"""Nothing."""\n\n\ndef __getattr__(name):\n    from trainers.runner.run import run\n'
        "    return run\n"
    ),
    "trainers/errors.py": (
        '"""Failures."""\n\n\nclass BadError(ValueError):\n    """When bad."""\n\n\n'
        'class WorseError(BadError):\n    """When worse."""\n'
    ),
    "trainers/config/settings.py": (
        '"""Settings."""\n\n\nclass Ppo:\n    """P."""\n\n    gamma: float = 1.0\n    """Unit."""\n'
    ),
    "trainers/functional/kl.py": (
        '"""KL."""\nfrom torch import Tensor\nfrom trainers.errors import BadError\n\n\n'
        'def k1(logprobs: Tensor) -> Tensor:\n    """Estimate, [B, T]."""\n'
    ),
    "trainers/backends/base.py": (
        '"""Engines."""\nfrom abc import ABC\n\n\nclass Engine(ABC):\n    """Any."""\n'
    ),
    "trainers/backends/torch.py": (
        '"""One process."""\nfrom trainers.backends.base import Engine\n\n\n'
        'class TorchEngine(Engine):\n    """Plain."""\n'
    ),
    "trainers/ppo.py": (
        '"""PPO."""\nfrom trainers.errors import WorseError\n\n\n'
        'def update(part):\n    """Report `loss/ignored` in prose."""\n'
        '    if not part:\n        raise WorseError("no part")\n'
        '    return {"loss/policy_avg": 1, f"rewards/{part}/mean": 2}\n'
    ),
    "trainers/loggers/wandb.py": '"""W&B."""\nimport wandb\n',
    "trainers/runner/run.py": '"""Assembles."""\nfrom trainers.ppo import update\n\nrun = update\n',
    "scripts/train_ppo.py": '"""The entry."""\nfrom trainers.runner.run import run\n',
    "tests/conftest.py": "import pytest\n\nSKIP = pytest.mark.skip\n",
    "tests/unit/test_one.py": "def test_one():\n    assert True\n",
    "docs/metrics.md": ("| key |\n| --- |\n| `loss/policy_avg` |\n| `rewards/{name}/mean` |\n"),
    "configs/quick.yaml": (
        "# Purpose:  shows it.\n# Hardware: two cores.   Time: a minute.\n"
        "# Result:   1.0.\n# Run:      llmgym train quick\nrun: {name: quick}\n"
    ),
}
IN_ORDER |= {"CONTRIBUTING.md": imports.floors_table()}
IN_ORDER |= {
    door: '"""A door."""\n' for door in imports.DOORS.values() if door not in (*IN_ORDER, "nobody")
}
FAULTS = [
    (imports.every_file_has_a_floor, {"trainers/extra.py": '"""X."""\n'}, "trainers/extra.py"),
    (
        imports.imports_point_down,
        {"trainers/ppo.py": "from trainers.runner.run import run\n"},
        "trainers/ppo.py:1: on floor 7 imports trainers.runner",
    ),
    (
        imports.imports_point_down,
        {
            "trainers/collect/base.py": "",
            "trainers/learner.py": "def f():\n    from trainers.collect import base\n",
        },
        "trainers/learner.py:2: on floor 6",
    ),
    (
        imports.imports_point_down,
        {"llmgym/env.py": "from trainers import run\n"},
        "llmgym/env.py:1: on floor 0 imports trainers.run,",
    ),
    (
        imports.imports_point_down,
        {"llmgym/env.py": "import trainers.config\n"},
        "llmgym/env.py:1: on floor 0",
    ),
    (
        imports.imports_point_down,
        {"trainers/__init__.py": "from trainers.runner.run import run\n"},
        "trainers/__init__.py:1",
    ),
    (
        imports.imports_point_down,
        {"trainers/backends/base.py": "from trainers.generation.sampling import draw\n"},
        "trainers/backends/base.py:1: on floor 5",
    ),
    (
        imports.imports_point_down,
        {
            "trainers/batch.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
            "    from trainers.ppo import update\n"
        },
        "trainers/batch.py:4",
    ),
    (imports.imports_are_absolute, {"llmgym/env.py": "from . import tasks\n"}, "llmgym/env.py:1"),
    (
        imports.no_import_cycle,
        {
            "llmgym/__init__.py": "import llmgym.env\n",
            "llmgym/env.py": "from llmgym import __version__\n",
        },
        "cycle: llmgym",
    ),
    (
        imports.no_import_cycle,
        {
            "llmgym/env.py": "import llmgym.vector\n",
            "llmgym/vector.py": "def f():\n    from llmgym import env\n",
        },
        "cycle: llmgym.",
    ),
    (
        imports.libraries_have_doors,
        {"scripts/bench.py": "import wandb.util\n"},
        "scripts/bench.py:1: imports wandb: only trainers/loggers/wandb.py",
    ),
    (imports.doors_exist, {"trainers/loggers/wandb.py": None}, "the door of wandb is no file"),
    (
        imports.libraries_have_doors,
        {"trainers/models/loading.py": "from accelerate import Accelerator\n"},
        "only nobody may",
    ),
    (
        imports.torch_stays_out,
        {"llmgym/env.py": "def f():\n    import torch\n"},
        "llmgym/env.py:2: imports torch",
    ),
    (
        imports.torch_stays_out,
        {"llmgym/envs/other.py": '"""No word."""\nfrom transformers import AutoModel\n'},
        "llmgym/envs/other.py:2",
    ),
    (
        imports.torch_stays_out,
        {"trainers/config/settings.py": "import torch\n"},
        "trainers/config/settings.py:1",
    ),
    (
        imports.one_file_imports_by_name,
        {"llmgym/tasks.py": 'import importlib\n\nimportlib.import_module("os")\n'},
        "llmgym/tasks.py:3",
    ),
    (shape.files_are_short, {"tests/unit/test_long.py": "A = 1\n" * 361}, "361 lines"),
    (
        shape.functions_are_short,
        {"trainers/ppo.py": "class A:\n    def f(self):\n" + "        self.a = 1\n" * 60},
        "trainers/ppo.py:2: f has 61 lines",
    ),
    (shape.names_say_what_is_held, {"llmgym/utils.py": ""}, "llmgym/utils.py"),
    (shape.names_say_what_is_held, {"trainers/models/mlp_v2.py": ""}, "trainers/models/mlp_v2.py"),
    (shape.code_is_ascii, {"trainers/ppo.py": 'A = 1\nB = "\u00e9"\n'}, "trainers/ppo.py:2"),
    (
        shape.no_test_skips_itself,
        {"tests/unit/test_two.py": 'import pytest\n\npytest.importorskip("torch")\n'},
        "tests/unit/test_two.py:3",
    ),
    (
        shape.no_test_skips_itself,
        {"tests/unit/test_two.py": "import pytest\n\n@pytest.mark.skipif(True)\ndef f(): ...\n"},
        "tests/unit/test_two.py:3: pytest.mark.skipif",
    ),
    (
        shape.no_test_skips_itself,
        {"tests/unit/test_two.py": "from pytest import skip\n"},
        "tests/unit/test_two.py:1",
    ),
    (
        shape.texts_are_written_through_one_door,
        {"trainers/ppo.py": 'A = F.open("a", encoding="utf-8")\n'},
        "trainers/ppo.py:1: writes a file",
    ),
    (
        shape.texts_are_written_through_one_door,
        {"trainers/ppo.py": 'A = (F / "x").write_text("y")\n'},
        "trainers/ppo.py:1: writes a file",
    ),
    (shape.no_probing, {"trainers/ppo.py": 'A = hasattr(1, "b")\n'}, "trainers/ppo.py:1"),
    (
        shape.classes_are_abstract_or_final,
        {
            "trainers/backends/odd.py": "from trainers.backends.torch import TorchEngine\n\n\n"
            "class OddEngine(TorchEngine):\n    pass\n"
        },
        "OddEngine derives from TorchEngine",
    ),
    (
        words.former_words_stay_away,
        {"trainers/ppo.py": '"""P."""\n\n\nclass UsualFarewell:\n    """F."""\n'},
        "trainers/ppo.py: the word farewell is a former one",
    ),
    (
        words.names_tell_what_they_hold,
        {"llmgym/env.py": "A = [1 for _found in ()]\n"},
        "llmgym/env.py:1: _found does not tell what it holds",
    ),
    (
        words.names_tell_what_they_hold,
        {"scripts/bench.py": "def f(a, *, given=1):\n    return given\n"},
        "scripts/bench.py:1: given does not tell what it holds",
    ),
    (
        words.first_lines_are_plain,
        {"llmgym/env.py": 'class Env:\n    """Say farewell.\n\n    Told.\n    """\n'},
        "llmgym/env.py:1: first line of a docstring: farewell",
    ),
    (
        words.public_names_are_unique,
        {"trainers/learner.py": "class Learner:\n    x = 1\n\n\ny, update = 1, 2\n"},
        "trainers/ppo.py:5: update is a public name of trainers/learner.py too",
    ),
    (
        words.public_names_are_unique,
        {"trainers/cli/eval.py": "ROWS: int = 1\n", "trainers/cli/data.py": "ROWS = 1\n"},
        "trainers/cli/eval.py:1: ROWS is a public name of trainers/cli/data.py too",
    ),
    (
        words.public_names_have_docstrings,
        {"llmgym/env.py": "A = 1\n"},
        "llmgym/env.py:1: no header",
    ),
    (
        words.public_names_have_docstrings,
        {"llmgym/env.py": '"""E."""\n\n\nclass Env:\n    """E."""\n\n    def step(self): ...\n'},
        "llmgym/env.py:7: step",
    ),
    (
        words.tensors_have_shapes,
        {
            "trainers/functional/kl.py": "from torch import Tensor\n\n\n"
            'def k1(logprobs: Tensor | None) -> None:\n    """Estimate."""\n'
        },
        "trainers/functional/kl.py:4: k1",
    ),
    (
        imports.contributing_lists_the_floors,
        {"CONTRIBUTING.md": "| floor | rooms |\n| --- | --- |\n| 0 | `llmgym` |\n"},
        "CONTRIBUTING.md: the table of floors is not FLOORS",
    ),
    (
        words.settings_explain_themselves,
        {
            "trainers/config/settings.py": 'class Ppo:\n    """P."""\n\n'
            "    gamma: float = 1.0\n    b: int\n"
        },
        "trainers/config/settings.py:4: Ppo.gamma",
    ),
    (
        words.metrics_are_documented,
        {"trainers/runner/run.py": 'A = {"train/unknown": 1}\n'},
        "trainers/runner/run.py: train/unknown has no row",
    ),
    (
        words.metrics_are_documented,
        {"docs/metrics.md": "| `loss/policy_avg` |\n| `rewards/{x}/mean` |\n| `loss/gone` |\n"},
        "loss/gone is nowhere",
    ),
    (
        words.errors_are_raised,
        {"llmgym/errors.py": '"""F."""\n\n\nclass GoneError(ValueError):\n    """Never."""\n'},
        "llmgym/errors.py:4: nothing raises GoneError",
    ),
    (
        words.config_files_have_headers,
        {"configs/quick.yaml": "# Purpose: a\n# Hardware: b\n# Run: llmgym train quick\n"},
        "configs/quick.yaml: no line `# Result:`",
    ),
    (
        words.config_files_have_headers,
        {"configs/slow.yaml": IN_ORDER["configs/quick.yaml"]},
        "configs/slow.yaml: the command after `# Run:` does not name it",
    ),
]


def planted(root, files):
    for name, text in files.items():
        path = root / name
        if text is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_tree_in_order_is_accepted(rule, tmp_path):
    assert rule(planted(tmp_path, IN_ORDER)) == []


@pytest.mark.parametrize(("rule", "fault", "said"), FAULTS)
def test_a_planted_fault_is_refused_and_named(rule, fault, said, tmp_path):
    complaints = rule(planted(tmp_path, IN_ORDER | fault))
    assert any(said in complaint for complaint in complaints), complaints


def test_every_rule_was_shown_a_fault():
    assert {rule for rule, _, _ in FAULTS} == set(RULES)
