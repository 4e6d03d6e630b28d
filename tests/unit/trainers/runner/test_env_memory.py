"""What a wrapper remembers of the rewards it saw is resumed with the run."""

from safetensors.torch import load_file

from tests import tiny
from trainers.run_dir.record import lines
from trainers.runner.run import run

WRAP = {"name": "LengthReward", "mode": "constrained", "floor": 0.8, "scale": 8, "correct": 0.5}


def trained(model, folder, iterations, **options):
    changes = {"envs.0.kwargs.wrap": [WRAP], "ppo.num_iterations": iterations}
    config = tiny.run_settings(model, folder, **changes)
    folder = run(config, reward=tiny.letters, **options).run_dir
    multiplier = "rewards/length_multiplier/mean"
    rows = [line[multiplier] for line in lines(folder / "metrics.jsonl") if multiplier in line]
    return rows, load_file(folder / "model" / "model.safetensors")


def test_a_resumed_run_pays_by_the_multiplier_that_it_had(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    straight, expected = trained(model, tmp_path / "straight", 4)
    trained(model, tmp_path / "parts", 2)
    resumed, weights = trained(model, tmp_path / "parts", 4, resume=True)
    assert resumed == straight
    assert len({round(value, 6) for value in straight}) > 2, "the multiplier moved"
    assert all((weights[name] == expected[name]).all() for name in expected)
