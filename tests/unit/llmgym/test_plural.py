"""Numbers with their nouns."""

import re

import pytest

from llmgym.plural import counted
from tests.architecture.source import PACKAGES, ROOT, found, name


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (100, "100 rows")]
)
def test_one_is_singular_and_nothing_else(number, said):
    assert counted(number, "row") == said


def test_no_message_leaves_the_number_open():
    texts = {name(ROOT, one): one.read_text("utf-8") for one in found(ROOT, *PACKAGES)}
    assert not [file for file, text in texts.items() if re.search(r"\} [a-z]+\(s\)", text)]
