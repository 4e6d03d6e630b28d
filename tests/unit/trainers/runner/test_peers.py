"""What is said of a rank that is lost."""

import pytest

from trainers.runner.peers import Farewell, told

LEFT = {0: Farewell(phase="rollout", error="Connection closed", is_cause=False)}
FAILED = LEFT | {1: Farewell(phase="rollout", error="OSError: full", is_cause=True)}


@pytest.mark.parametrize(("farewells", "what"), [(LEFT, "Last words"), (FAILED, "Its log")])
def test_a_log_is_pointed_to_where_anything_stands_in_it(farewells, what, tmp_path):
    def said():
        return told(farewells, ["here", "there"], tmp_path, 6.0)

    missing, log = said(), tmp_path / "rank_1.log"
    assert "rank 1 (there)" in missing
    assert what not in missing
    log.touch()
    assert said() == missing
    log.write_text("something\n", "utf-8")
    assert f" {what}: {log}\n" in said()
