"""What a tokenizer is trained on: ordinary text as it is, words without end in pieces."""

import random
import time

import pytest
from tokenizers import pre_tokenizers

from trainers.models import chat
from trainers.models.chat import train_tokenizer
from trainers.models.corpus import MAX_WORD_LENGTH, with_short_words

SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
)
ORDINARY = (
    'The quick brown fox, 12 of them: "jumps"!\n\n\tover\u00e9 ...  ---- #### 42',
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002" * 300,
    "https://example.org/" + "a/b.c?d=e&" * 200,
    "x" * MAX_WORD_LENGTH + " " * MAX_WORD_LENGTH,
    "9" * 5 * MAX_WORD_LENGTH,
    "",
)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_the_same_object(text):
    (found,) = with_short_words([text], SPLIT)
    assert found == text


def test_a_tokenizer_of_ordinary_text_is_what_it_was_to_the_last_merge(monkeypatch):
    after = train_tokenizer(ORDINARY, 600).backend_tokenizer.to_str()
    monkeypatch.setattr(chat, "with_short_words", lambda texts, split: texts)
    assert train_tokenizer(ORDINARY, 600).backend_tokenizer.to_str() == after


@pytest.mark.parametrize("letter", ["a", "\u4e2d", "!", " ", "\n"])
def test_a_word_without_end_is_cut_and_nothing_of_the_text_is_lost(letter):
    text = f"Say it: {letter * (3 * MAX_WORD_LENGTH + 5)} and 42 again"
    pieces = [*with_short_words([text], SPLIT)]
    assert "".join(pieces) == text
    words = [end - start for one in pieces for _, (start, end) in SPLIT.pre_tokenize_str(one)]
    assert max(words) <= MAX_WORD_LENGTH + 1
    assert len(pieces) <= 5


def test_a_word_of_two_megabytes_is_learned_from_in_seconds():
    letters = random.Random(0).choices("abcdefghij", k=2_000_000)
    begun = time.process_time()
    found = train_tokenizer(["".join(letters), "Say 42."], 300)
    assert time.process_time() - begun < 30
    assert found.decode(found("Say 42.").input_ids) == "Say 42."
