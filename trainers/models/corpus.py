"""The texts a tokenizer is trained on, without words so long that its training would not end.

Byte-level BPE merges inside one word at a time, which takes time with the square of its length, in
code where Python handles no signal: one word of 2 MB takes many minutes.
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import pre_tokenizers

MAX_WORD_LENGTH = 1000
"""Characters of the longest word that is learned from as a whole. No language has one as long."""

PERHAPS_LONG = re.compile(rf"\S{{{MAX_WORD_LENGTH + 1}}}|\s{{{MAX_WORD_LENGTH + 1}}}")
"""Where no such run is, no word is longer: a word is all space, or one space and none after it."""


def with_short_words(texts: Iterable[str], split: pre_tokenizers.PreTokenizer) -> Iterator[str]:
    """Yield texts as they are, but where a word is too long its pieces.

    Args:
        texts: what a tokenizer is trained on.
        split: finds the words of a text.
    """
    for text in texts:
        if PERHAPS_LONG.search(text) is None:
            yield text
            continue
        begin = 0
        for _, (start, end) in split.pre_tokenize_str(text):
            for place in range(start + MAX_WORD_LENGTH, end, MAX_WORD_LENGTH):
                yield text[begin:place]
                begin = place
        yield text[begin:]
