#!/usr/bin/env bash
# Library:  reasoning-gym 0.1.25.
# Expected: `game_of_life_halting` (does this board stop changing? True or False) pays 1.0 for the right word, and less
#           for the wrong one or for an answer that is none, as its neighbours of two answers do.
# Seen:     every text that is not empty earns 1.0, on boards whose answer is True and on those whose answer is
#           False: the opposite word, a number, an excuse. A policy that learns from it learns nothing, at full reward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet reasoning-gym==0.1.25
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import reasoning_gym

boards = list(reasoning_gym.create_dataset("game_of_life_halting", size=20, seed=0))
dataset = reasoning_gym.create_dataset("game_of_life_halting", size=20, seed=0)
opposite = {"True": "False", "False": "True"}
texts = {
    "the answer": lambda board: str(board["answer"]),
    "the opposite": lambda board: opposite[str(board["answer"])],
    "a number": lambda board: "42",
    "an excuse": lambda board: "I do not know.",
    "nothing": lambda board: "",
}
answers = {str(board["answer"]) for board in boards}
print(f"{len(boards)} boards, answers {sorted(answers)}")
means = {}
for name, text in texts.items():
    scores = [dataset.score_answer(text(board), board) for board in boards]
    means[name] = sum(scores) / len(scores)
    print(f"{name:13} mean reward {means[name]:.2f}")
assert answers == {"True", "False"}
assert means.pop("nothing") < 0.5 and set(means.values()) == {1.0}, "the behaviour has changed"
PY
