"""Train, started by torchrun or deepspeed: the arguments are those of `llmgym train`.

Run: torchrun --nproc_per_node 2 scripts/train_ppo.py quickstart
"""

import sys
from pathlib import Path

# A launcher starts this file, so Python looks for packages in scripts/ and not in the checkout.
sys.path.insert(0, str(Path(__file__).parents[1]))

from trainers.cli.main import main
from trainers.distributed.launcher import share_cores

if __name__ == "__main__":
    share_cores()
    raise SystemExit(main(["train", *sys.argv[1:]]))
