#!/usr/bin/env bash
# Library:  math-verify 0.9.0 (latex2sympy2-extended 1.11.0), Python 3.11.
# Expected: parse() of a gold answer such as 2\sqrt{3} reads the expression, or returns nothing.
# Seen:     without dollar signs it reads the first number alone, so verify() says False of the right
#           response and True of a wrong one. With dollar signs it is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2-extended==1.11.0 \
  antlr4-python3-runtime==4.13.2 sympy==1.14.0
"$folder/venv/bin/python" - <<'PY'
from math_verify import parse, verify

seen = []
for gold, right, wrong in (
    (r"2\sqrt{3}", r"\boxed{2\sqrt{3}}", r"\boxed{2}"),
    (r"3\pi", r"\boxed{3\pi}", r"\boxed{3}"),
    ("2x+3", r"\boxed{2x+3}", r"\boxed{2}"),
):
    for form in (gold, f"${gold}$"):
        scores = verify(parse(form), parse(right)), verify(parse(form), parse(wrong))
        print(f"gold {form!r}: parsed {parse(form)}; right response {scores[0]}, wrong {scores[1]}")
        seen.append(scores)
assert seen == [(False, True), (True, False)] * 3, "the behaviour has changed"
PY
