"""Worker: PPO of this project on two-digit addition, by the settings of `quickstart`."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import trainers
from scripts.evidence.time_to_90.clock import EVERY, ROLLOUTS, Job
from trainers.batch import Evaluation
from trainers.config.files import preset, read
from trainers.loggers.base import FinalStatus, Logger, Stage
from trainers.runner.stages import ppo_text


class Judge(Logger):
    """Takes the held-out scores of a run, which its own evaluation measures."""

    def __init__(self, job: Job) -> None:
        """Take the job, whose clock is stopped while the run evaluates."""
        self._job = job
        evaluate = ppo_text.evaluate_text

        def timed(*args: Any, **kwargs: Any) -> Evaluation:
            before = time.process_time()
            try:
                return evaluate(*args, **kwargs)
            finally:
                job.leave_out(time.process_time() - before)

        ppo_text.evaluate_text = timed

    def log(self, values: Mapping[str, float], step: int, section: Stage = "ppo") -> None:
        """Take no figures."""

    def evaluation(
        self, evaluations: Sequence[Evaluation], step: int, figures: Mapping[str, float]
    ) -> None:
        """Write the score of an iteration down."""
        del figures
        if step == 0:
            self._job.start()
        self._job.judge(step, lambda: evaluations[0].mean)

    def close(self, status: FinalStatus) -> None:
        """Finish nothing."""


def main() -> None:
    """Train until the run ends."""
    job = Job()
    rate = job.settings["rate"]
    changes = {
        "run.dir": tempfile.mkdtemp(),
        "run.seed": job.settings["seed"],
        "model.path": job.settings["model"],
        "sft.num_epochs": 0,
        "ppo.learning_rate": rate,
        "ppo.critic_learning_rate": 5 * rate,
        "ppo.num_epochs": job.settings["epochs"],
        "ppo.num_iterations": ROLLOUTS,
        "eval.every": EVERY,
        "checkpoint.every": 0,
    }
    trainers.run(read([preset("quickstart")], changes), loggers=[Judge(job)])


if __name__ == "__main__":
    main()
