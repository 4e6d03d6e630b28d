"""Environments for other libraries: `trl`, `verifiers` and `verl` take a registered id.

import llmgym.export
made = llmgym.export.trl("llmgym/Countdown-v0")
"""

from llmgym.export.for_trl import trl
from llmgym.export.for_verifiers import verifiers
from llmgym.export.for_verl import verl

__all__ = ["trl", "verifiers", "verl"]
