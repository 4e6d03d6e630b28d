"""The table of the layout counts what is there."""

from tests.architecture import table


def test_the_table_counts_rooms_loose_files_lines_and_former_words(tmp_path):
    files = {
        "trainers/errors.py": '"""Failures."""\n',
        "trainers/loose.py": '"""Loose."""\n\n\ndef judging():\n    return 1\n',
        "trainers/cli/main.py": '"""Verbs."""\nimport trainers.loose\n',
        "llmgym/env.py": '"""Environments."""\n\n\ndef one():\n    return 1\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    measured = table.measure(tmp_path, own_rules=False)
    assert measured["rooms of trainers"] == "1"
    assert measured["loose files in trainers"] == "1"
    assert measured["former words in names"] == "1"
    assert measured["lines of llmgym and trainers"] == "13"
    assert measured["lines of cli, plan and report"] == "2"
    assert measured["functions p50 / p90 / max"] == "2 / 2 / 2"
