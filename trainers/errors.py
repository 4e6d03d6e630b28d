"""The failures of a training run, one class each; the docstring says when."""


class ConfigError(ValueError):
    """Raised when a setting, or a combination of settings, is not allowed; names its path."""


class NonFiniteError(ArithmeticError):
    """Raised on every rank when a loss or gradient is not finite, before a weight is changed."""


class CheckpointError(RuntimeError):
    """Raised when a checkpoint or a run folder cannot be written, trusted or continued."""


class BackendError(RuntimeError):
    """Raised when ranks disagree, a collective fails or memory runs out."""


class LostRankError(BackendError):
    """Raised on every rank that is left when one fails, dies or does not answer; says which."""


class MeasurementError(RuntimeError):
    """Raised when a measured time cannot be trusted: a busy machine, a sum that predicts badly."""


class GenerationError(RuntimeError):
    """Raised when text cannot be generated: no end token, stale weights, non-finite logits."""


class LostServerError(GenerationError):
    """Raised when a generation server is down, too slow or lost, and no other is left."""


class MismatchError(GenerationError):
    """Raised on every rank when generator and trainer disagree on log-probabilities too much."""


class RolloutStoppedError(GenerationError):
    """Raised in the thread of a rollout that nobody waits for any more; never reaches the user."""


SAID_ELSEWHERE = "another rank prints this error"
"""A note on an error that one rank prints for all."""

LOWER_RATES = (
    "Often a learning rate is too high: lower --ppo.learning-rate or --ppo.critic-learning-rate, "
    "and continue with --resume."
)
"""What to do about a NonFiniteError."""
