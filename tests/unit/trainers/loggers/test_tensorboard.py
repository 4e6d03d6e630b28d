"""TensorBoard events: every figure by its key, and nothing twice after a resume."""

import builtins
import importlib
import math

import pytest

from trainers.batch import Evaluation
from trainers.config import Config, LogConfig, WandbConfig
from trainers.errors import ConfigError
from trainers.loggers.base import Logger, RunInfo
from trainers.loggers.default import default_loggers
from trainers.loggers.tensorboard import TensorBoardLogger

pytestmark = pytest.mark.tensorboard


def started(run_dir):
    logger = TensorBoardLogger()
    logger.start(RunInfo(Config(), run_dir))
    return logger


def scalars(folder):
    """(step, value) of each scalar by name, as TensorBoard reads a folder."""
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder)).Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_every_figure_is_a_scalar_of_its_key_over_the_steps_of_its_stage(tmp_path):
    logger = started(tmp_path)
    logger.log({"sft/loss": 2.5}, 7, "sft")
    logger.log({"objective/kl": 0.25, "loss/policy_avg": math.nan}, 1)
    logger.log({"objective/kl": 0.5}, 2)
    logger.close("finished")
    assert scalars(tmp_path / "tensorboard/sft") == {"sft/loss": [(7, 2.5)]}
    assert scalars(tmp_path / "tensorboard/ppo") == {"objective/kl": [(1, 0.25), (2, 0.5)]}


def test_held_out_scores_are_figures_of_their_iteration(tmp_path):
    logger = started(tmp_path)
    scored = Evaluation(env="E-v0", mean=0.5, ci_low=0.25, ci_high=0.75, scores=(0.0, 1.0), rows=())
    logger.evaluation([scored], 3, {"eval/best": 0.5})
    logger.close("finished")
    written = scalars(tmp_path / "tensorboard/ppo")
    assert written["eval/E-v0/ci_low"] == [(3, 0.25)]
    assert written["eval/best"] == [(3, 0.5)]


def test_a_resumed_run_takes_back_the_steps_that_it_repeats(tmp_path):
    first = started(tmp_path)
    for step in (1, 2, 3):
        first.log({"objective/kl": float(step)}, step)
    first.close("interrupted")
    second = started(tmp_path)  # from the checkpoint of step 1
    for step in (2, 3):
        second.log({"objective/kl": 10.0 * step}, step)
    second.close("finished")
    values = scalars(tmp_path / "tensorboard/ppo")["objective/kl"]
    assert values == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_a_folder_that_cannot_be_written_costs_one_warning_and_no_run(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file where the folder belongs")
    logger = started(tmp_path)
    for step in (1, 2):
        logger.log({"objective/kl": 0.5}, step)
    logger.close("finished")
    assert [one.message.partition(":")[0] for one in caplog.records] == [
        f"{tmp_path}/tensorboard gets no more events"
    ]


def test_a_disk_that_fills_up_costs_one_warning_and_no_run(tmp_path, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    logger = started(tmp_path)
    logger.log({"objective/kl": 0.5}, 1)
    logger._writers["ppo"].add_scalar = full
    for step in (2, 3):
        logger.log({"objective/kl": 0.5}, step)
    logger.close("finished")
    assert [one.message for one in caplog.records] == [
        f"{tmp_path}/tensorboard gets no more events: [Errno 28] No space left on device"
    ]
    assert scalars(tmp_path / "tensorboard/ppo") == {"objective/kl": [(1, 0.5)]}


def test_a_run_has_one_where_it_asks_for_it():
    def kinds(asked):
        quiet = LogConfig(tensorboard=asked, wandb=WandbConfig(enabled=False))
        return [type(one) for one in default_loggers(Config(log=quiet))]

    assert TensorBoardLogger in kinds(True)
    assert TensorBoardLogger not in kinds(False)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "torch.utils" and "tensorboard" in (args[2] or ()):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"llmgym-rl\[train,tensorboard\].*--log.tensorboard"):
        TensorBoardLogger()


def test_two_methods_make_a_logger(tmp_path):
    class Counts(Logger):
        def __init__(self):
            self.seen = []

        def log(self, values, step, section="ppo"):
            self.seen.append((dict(values), step))

        def close(self, status):
            self.seen.append(status)

    counts = Counts()
    counts.start(RunInfo(Config(), tmp_path))
    counts.note("model", "1 M")
    counts.samples([{"prompt": "p"}], 1)
    counts.evaluation([], 2, {"eval/best": 1.0})
    assert counts.state_dict() == {}
    counts.close("finished")
    assert counts.seen == [({"eval/best": 1.0}, 2), "finished"]
