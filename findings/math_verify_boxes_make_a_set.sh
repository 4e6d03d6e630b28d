#!/usr/bin/env bash
# Library:  math-verify 0.9.0 (latex2sympy2-extended 1.11.0), Python 3.11.
# Expected: of several \boxed{} in a response the last one counts, as in the usual graders.
# Seen:     they are read as the elements of one set. A response that corrects itself, and one that
#           repeats the right answer after a wrong step, both fail.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2-extended==1.11.0 \
  antlr4-python3-runtime==4.13.2 sympy==1.14.0
"$folder/venv/bin/python" - <<'PY'
from math_verify import parse, verify

corrected = r"I get \boxed{8}. One step was wrong; counted once more it is \boxed{7}."
read = parse(corrected)
print("parsed:", read)
passes = verify(parse("$7$"), read)
alone = verify(parse("$7$"), parse(r"Counted once more it is \boxed{7}."))
print("corrected response passes:", passes, "| its last sentence alone passes:", alone)
assert (passes, alone) == (False, True), "the behaviour has changed"
assert verify(parse(r"$\{7,8\}$"), read), "the behaviour has changed"
PY
