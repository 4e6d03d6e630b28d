"""Train, started by torchrun, deepspeed or srun: the arguments are those of `llmgym train`.

    torchrun --nproc_per_node 2 scripts/train_ppo.py quickstart
"""

import sys

from trainers.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
