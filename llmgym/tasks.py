"""The former path of `llmgym.data.tasks`, which stays."""

from llmgym.data.tasks import *  # noqa: F403
