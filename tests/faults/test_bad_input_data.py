"""Data files that are missing, empty or wrong, for the environment and for demonstrations."""

from pathlib import Path

import pytest

from tests.faults.conftest import write_rows

PROMPTS = "--envs.0.kwargs.path"
SFT = {
    "--model.preset": "tiny",
    "--model.context": 64,
    "--generation.max-prompt-tokens": 20,
    "--generation.max-new-tokens": 20,
    "--log.wandb.enabled": "false",
}


def sft(refused, **data):
    """Type `llmgym sft` with settings of the section data."""
    named = {f"--data.{name.replace('_', '-')}": value for name, value in data.items()}
    return refused(SFT | named, verb=("sft",))


def test_a_missing_file_is_named_with_the_one_that_was_meant(refused):
    for said in (refused({PROMPTS: "promts.jsonl"}), sft(refused, path="promts.jsonl")):
        assert "no file promts.jsonl, looked for from" in said
        assert "Did you mean prompts.jsonl?" in said


def test_an_empty_file_is_refused(refused):
    Path("none.jsonl").touch()
    Path("blank.jsonl").write_text("\n\n", encoding="utf-8")
    for name in ("none.jsonl", "blank.jsonl"):
        assert f"{name} has no rows; give it at least one" in refused({PROMPTS: name})
        assert f"{name} has no rows; give it at least one" in sft(refused, path=name)


def test_a_row_without_the_prompt_is_named_by_file_and_line(refused):
    rows = '{"prompt": "a", "response": "b"}\n\n{"promt": "a", "response": "b"}\n'
    Path("rows.jsonl").write_text(rows, encoding="utf-8")
    said = refused({PROMPTS: "rows.jsonl"})
    assert 'rows.jsonl, line 3, has no column "prompt"; it has promt, response.' in said
    assert "--envs.0.kwargs.prompt_column promt" in said
    said = sft(refused, path="rows.jsonl")
    assert 'rows.jsonl, line 3 has no column "prompt"; it has promt, response.' in said
    assert "--data.prompt-column" in said


def test_a_prompt_that_is_no_text_is_named_by_file_and_line(refused):
    write_rows("rows.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "", "response": "b"}])
    assert 'rows.jsonl, line 2, column "prompt": a prompt is' in refused({PROMPTS: "rows.jsonl"})
    said = sft(refused, path="rows.jsonl")
    assert 'rows.jsonl, line 2, column "prompt": a prompt is text' in said


def test_a_line_that_is_no_json_is_named(refused):
    Path("rows.jsonl").write_text('{"prompt": "a"}\n{"prompt":\n', encoding="utf-8")
    assert "rows.jsonl, line 2 is not JSON" in refused({PROMPTS: "rows.jsonl"})
    assert "rows.jsonl, line 2 is not JSON" in sft(refused, path="rows.jsonl")


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(refused):
    Path("rows.txt").write_text("a\n", encoding="utf-8")
    assert 'ends in ".txt"; a data file ends in one of .jsonl' in refused({PROMPTS: "rows.txt"})
    assert 'ends in ".txt"; a data file ends in one of .jsonl' in sft(refused, path="rows.txt")


def test_a_column_that_no_row_has_is_refused_with_those_there_are(refused):
    said = refused({"--envs.0.kwargs.prompt_column": "question"})
    assert 'prompts.jsonl has no column "question"; it has prompt, word.' in said
    said = sft(refused, path="prompts.jsonl")
    assert 'prompts.jsonl, line 1 has no column "response"; it has prompt, word.' in said
    assert "--data.response-column" in said


@pytest.fixture
def with_a_long_prompt(place):
    """Name a file whose sixth prompt has more than 60 tokens."""
    rows = [{"prompt": f"Name {n}" + " please" * 20 * (n == 5)} for n in range(12)]
    write_rows("long.jsonl", rows)
    return {PROMPTS: "long.jsonl", "--envs.0.kwargs.split": "all"}


def test_a_prompt_over_the_limit_is_found_before_anything_is_learned(refused, with_a_long_prompt):
    said = refused(with_a_long_prompt)
    assert "1 of 12 prompts of llmgym/Prompts-v0 are longer than generation.max_prompt_tokens 60" \
        in said  # fmt: skip
    assert "in long.jsonl, line 6: 'Name 5 please please" in said
    assert "--generation.max-prompt-tokens" in said
    assert "--data.too-long drop" in said


def test_a_held_out_prompt_over_the_limit_is_found_as_early(refused, with_a_long_prompt):
    kwargs = {"--eval.kwargs.path": "long.jsonl", "--eval.kwargs.split": "all"}
    write_rows("short.jsonl", [{"prompt": f"Say {n}"} for n in range(9)])
    said = refused({**kwargs, "--eval.num-tasks": 4, PROMPTS: "short.jsonl"})
    assert "1 of 12 prompts" in said


def test_such_prompts_are_dropped_on_request(typed, with_a_long_prompt):
    answer = typed({**with_a_long_prompt, "--data.too-long": "drop", "--ppo.num-prompts": 12})
    assert answer.code == 0
    first = Path("runs/a/metrics.jsonl").read_text(encoding="utf-8")
    assert '"env/llmgym/Prompts-v0/truncated_prompts": 2.0' in first


def test_prompt_and_response_that_exceed_the_context_are_refused(refused):
    said = refused({"--generation.max-prompt-tokens": 125})
    assert "125 + generation.max_new_tokens 4 = 129 exceeds the model's context of 128" in said


def test_a_demonstration_over_the_context_is_named_by_file_and_line(refused):
    write_rows("rows.jsonl", [{"prompt": "a", "response": "7" * (1 + 98 * n)} for n in range(2)])
    said = sft(refused, path="rows.jsonl")
    assert "rows.jsonl, line 2 has" in said
    assert "the model takes 64 in all" in said
    assert "--data.too-long drop" in said


def test_the_file_of_data_is_trained_on_where_the_environment_has_none(typed):
    answer = typed({PROMPTS: None, "--data": "prompts.jsonl"})
    assert answer.code == 0
    assert "llmgym/Prompts-v0: 11 train" in answer.shown + answer.said


@pytest.mark.parametrize("verb", [("train",), ("plan",)])
def test_a_file_that_nothing_would_read_is_refused(refused, verb):
    said = refused({"--data": "prompts.jsonl"}, verb=verb)
    assert "nothing would read data.path prompts.jsonl" in said


ANSWERED = [{"role": "user", "content": "Say 3."}, {"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ANSWERED}, "ends with the assistant's answer"),
        pytest.param(
            {"prompt": [{"role": "user", "content": None}]},
            "content of a message is text, got null",
            marks=pytest.mark.slow,
        ),
        ({"prompt": "a" * 200}, "are longer than generation.max_prompt_tokens 60"),
        pytest.param({"word": "a"}, 'no column "prompt"', marks=pytest.mark.slow),
    ],
)
def test_a_plan_refuses_the_rows_that_a_run_refuses(refused, typed, row, words):
    rows = [{"prompt": f"Name {n}"} for n in range(4)]
    write_rows("rows.jsonl", [*rows, row])
    given = {PROMPTS: "rows.jsonl", "--envs.0.kwargs.split": "all"}
    assert words in refused(given)
    planned = {"--model.path": "model", "--reward": "my_reward.py:good",
               "--generation.max-prompt-tokens": 60, "--generation.max-new-tokens": 4}  # fmt: skip
    assert words in refused({**given, **planned, "--eval.num-tasks": 0}, verb=("plan", "prompts"))
