"""The failures an environment can raise, one class each; the docstring says when."""

from gymnasium.error import Error


class LLMGymError(Error):
    """Base of every error below; catch it to catch them all."""


class EnvContractError(LLMGymError, ValueError):
    """Raised when an environment, a wrapper or a space breaks the contract of `llmgym/laws.py`."""


class EnvTimeoutError(LLMGymError, TimeoutError):
    """Raised when the reset of an environment takes longer than `env_timeout`; names the line."""


class EnvProcessError(LLMGymError, RuntimeError):
    """Raised when the process of an environment ends, or its environment raises an error."""


class EpisodeOverError(LLMGymError, RuntimeError):
    """Raised when an episode that has ended is stepped again without a reset."""


class TaskSourceError(LLMGymError, ValueError):
    """Raised when tasks cannot be read: no file, no column, an empty file, overlapping splits."""


class RewardError(LLMGymError, RuntimeError):
    """Raised when a reward function is broken: None, a wrong length or type, too many failures."""


class RewardNotFound(LLMGymError, ValueError):
    """Raised when the name, module or function of a reward does not exist."""


class ToolError(LLMGymError):
    """Raised by a call that gave no result; its text is what the policy is answered."""


class ToolServerError(LLMGymError, RuntimeError):
    """Raised when what runs a tool is broken, such as a server that ended: no answer of a tool."""


class MissingExtraError(LLMGymError, ImportError):
    """Raised when a part needs an optional library that is not installed; names the extra."""


class PluginError(LLMGymError, ImportError):
    """Raised when a module, file or name that was asked for by its address cannot be loaded."""
