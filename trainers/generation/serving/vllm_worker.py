"""A generation worker with vLLM, which a run starts itself, or a person for `generation.servers`.

Needs: torch and vllm, in an environment with this package and none of its requirements:

    VLLM_ENVIRONMENT/bin/python -m pip install --no-deps llmgym-rl

Run: VLLM_ENVIRONMENT/bin/python -m trainers.generation.serving.vllm_worker --port 8100
"""

import sys

from trainers.generation.serving.server import serve
from trainers.generation.serving.vllm_engine import build_engine

if __name__ == "__main__":
    serve(build_engine, sys.argv[1:])
