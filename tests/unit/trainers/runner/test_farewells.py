"""What is said of a rank that is lost."""

import pytest

from trainers.runner.farewells import Farewell, heard, leave, told

LEFT = {0: Farewell(phase="rollout", error="Connection closed", is_cause=False)}
FAILED = LEFT | {1: Farewell(phase="rollout", error="OSError: full", is_cause=True)}


@pytest.mark.parametrize(("farewells", "what"), [(LEFT, "Last words"), (FAILED, "Its log")])
def test_a_log_is_pointed_to_and_said_to_be_empty_where_it_is(farewells, what, tmp_path):
    def said():
        return told(farewells, ["here", "there"], tmp_path, 6.0)

    missing, log = said(), tmp_path / "rank_1.log"
    assert "rank 1 (there)" in missing
    assert f" {what}: {log} (empty)\n" in missing
    log.touch()
    assert said() == missing
    log.write_text("something\n", "utf-8")
    assert f" {what}: {log}\n" in said()


def test_farewells_are_read_back_by_rank_and_a_full_disk_costs_no_more_than_them(tmp_path):
    leave(tmp_path, 12, LEFT[0])
    leave(tmp_path, 1, FAILED[1])
    assert list(heard(tmp_path).items()) == [(1, FAILED[1]), (12, LEFT[0])]
    assert len(list(tmp_path.iterdir())) == 2
    leave(tmp_path / "none", 0, LEFT[0])
    assert heard(tmp_path / "none") == {}
