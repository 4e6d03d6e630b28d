"""The former path of `llmgym.data.rows`, which stays."""

from llmgym.data.rows import *  # noqa: F403
