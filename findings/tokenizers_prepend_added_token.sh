#!/usr/bin/env bash
# Library:  tokenizers 0.23.3, Python 3.11.
# Expected: an added token is found wherever its text stands, with or without normalized=True, as long
#           as the normalizer changes neither.
# Seen:     under the normalizer Prepend, which SentencePiece-like tokenizers have, the token's own text
#           is normalized too and gets the prefix, so with normalized=True it is found nowhere, neither
#           inside a text nor at its beginning; with normalized=False it is found everywhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
from tokenizers import AddedToken, Tokenizer, models, normalizers

seen = {}
for normalized in (False, True):
    for prefix in ("", "_"):
        letters = {letter: number for number, letter in enumerate("_abcdefghijklmnopqrstuvwxyz<>")}
        tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
        if prefix:
            tokenizer.normalizer = normalizers.Prepend(prefix)
        tokenizer.add_tokens([AddedToken("<end>", normalized=normalized)])
        found = ["<end>" in tokenizer.encode(text).tokens for text in ("ab<end>cd", "<end>cd")]
        seen[normalized, prefix] = found
        print(f"normalized={normalized}, prepends {prefix!r}: inside {found[0]}, first {found[1]}")
assert seen[False, ""] == seen[True, ""] == seen[False, "_"] == [True, True], "changed"
assert seen[True, "_"] == [False, False], "the behaviour has changed"
PY
