#!/usr/bin/env bash
# Library:  reasoning-gym 0.1.25, Python 3.11.
# Expected: two seeds give two sets of questions, so that one trains and the other holds out.
# Seen:     question i is drawn from seed + i. Sets of 50 questions with seeds 42 and 43 share 49 of
#           them, each in the place before: a policy is tested on what it was trained on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet reasoning-gym==0.1.25
"$folder/venv/bin/python" - <<'PY'
import reasoning_gym

SIZE = 50
shared = {}
for name in ("chain_sum", "basic_arithmetic", "simple_equations"):
    one, other = (
        [row["question"] for row in reasoning_gym.create_dataset(name, size=SIZE, seed=seed)]
        for seed in (42, 43)
    )
    shared[name] = len(set(one) & set(other))
    print(f"{name}: {shared[name]} of {SIZE} questions are in both; shifted by one: {one[1:] == other[:-1]}")
    assert one[1:] == other[:-1], "the behaviour has changed"
assert all(count >= SIZE - 1 for count in shared.values()), "the behaviour has changed"
PY
