"""The house rules, executed: each rule reads the whole tree and lists what breaks it."""

import pytest

from tests.architecture import imports, shape, words
from tests.architecture.source import ROOT

RULES = (*imports.RULES, *shape.RULES, *words.RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_keeps_the_rule(rule):
    faults = rule(ROOT)
    assert not faults, "\n" + "\n".join(faults)
