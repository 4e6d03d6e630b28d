"""`llmgym data check`: what it shows of a file, and what it says of a bad one."""

import json

import pytest

from llmgym.data.survey import percentiles
from tests.tiny import save_model
from trainers.cli import main as cli


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Write a file, type the command; give the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)

    def command(content, *words, name="my.jsonl"):
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        if isinstance(content, str):
            content = content.encode()
        (tmp_path / name).write_bytes(content)
        code = cli.main(["data", "check", name, *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "model"))


GOOD = [{"prompt": f"{n} + {n} =", "answer": f"{2 * n}"} for n in range(10, 30)]


def test_a_sound_file_is_shown_with_the_commands_that_train_on_it(check):
    code, said = check(GOOD)
    assert code == 0
    assert "file      my.jsonl: 20 rows" in said
    assert "held out  a tenth of the prompts" in said
    assert [line.split() for line in said.splitlines() if line.startswith("prompt")] == [
        ["prompt", "9", "9", "9", "9"]
    ]
    assert "line 1  10 + 10 =  ->  20" in said
    assert (
        "Next      llmgym sft --model.preset tiny --data my.jsonl --data.response-column answer"
        in said
    )
    assert "llmgym train prompts --model.path MODEL --envs.0.kwargs.path my.jsonl" in said
    assert "error" not in said
    assert "warning" not in said


def test_other_columns_reach_the_commands(check):
    code, said = check("What?\t4\n", "--columns", "q,n", "--prompt-column", "q", name="a.tsv")
    assert code == 0
    assert "--envs.0.kwargs.prompt_column q --reward my_reward.py:score" in said
    code, said = check(
        "q,n\nWhat?,4\n", "--prompt-column", "q", "--answer-column", "n", name="a.csv"
    )
    assert code == 0
    assert "--data.prompt-column q --data.response-column n" in said
    assert "--envs.0.kwargs.answer_column n" in said


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"q": "x"}],
            'my.jsonl has no column "prompt"; it has q. Name yours: --prompt-column NAME',
        ),
        ([*GOOD, {"answer": "x"}], 'error: 1 row, line 21, lack "prompt". Give every row one.'),
        (
            [*GOOD, {"prompt": " ", "answer": "x"}],
            'my.jsonl, line 21, column "prompt": a prompt is',
        ),
        ([*GOOD, {"prompt": 5, "answer": "x"}], "got 5"),
        ([*GOOD, {"prompt": "x", "answer": ""}], 'line 21, of my.jsonl have nothing in "answer"'),
        ([*GOOD, {"prompt": "x", "answer": None}], 'line 21, of my.jsonl have nothing in "answer"'),
        ('{"prompt": "x"}\n{broken', "error: my.jsonl, line 2 is not JSON"),
        (b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n', "line 2 is not UTF-8 text: byte 0xe9"),
        ("", "error: my.jsonl has no rows"),
    ],
)
def test_what_would_stop_a_run_is_an_error_with_its_line(check, rows, says):
    code, said = check(rows)
    assert code == 1
    assert says in said
    assert "Next      correct it, then: llmgym data check my.jsonl" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (GOOD[:2], "warning: 2 rows: too few to learn from, and to hold some out"),
        (GOOD[:1], "warning: 1 row: too few"),
        ([*GOOD, GOOD[2]], "warning: 1 prompt stands there more than once; first: lines 3, 21"),
        (
            [*GOOD, {"prompt": "10 + 10 =", "answer": "21"}],
            "once, 1 of them with different answers",
        ),
        (
            [*GOOD, {"prompt": "caf\u00c3\u00a9", "answer": "x"}],
            "line 21, hold text that was decoded",
        ),
    ],
)
def test_what_is_odd_is_a_warning(check, rows, says):
    code, said = check(rows)
    assert code == 0
    assert says in said


def test_a_file_without_a_header_line_is_seen(check):
    row = "My favourite food is anything I did not have to cook\t2\n"
    code, said = check(row * 2, name="a.tsv")
    assert code == 1
    assert "was read as column names ('My favourite food is anything '...)" in said
    assert "--columns text,labels,id" in said


def test_splits_that_overlap_are_an_error_from_either_side(check, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD[4]), "utf-8")
    code, said = check(GOOD, name="train.jsonl")
    assert code == 1
    assert "1 of 20 prompts are also in test.jsonl (first: line 5 here, line 1 there)" in said
    code, said = check([GOOD[4]], name="test.jsonl")
    assert code == 1
    assert "also in train.jsonl" in said


def test_a_model_adds_lengths_tokens_and_its_end_token(check, model):
    code, said = check(GOOD, "--model.path", model)
    assert code == 0
    assert "prompt in tokens" in said
    assert "answer in tokens                     3        3        3        3" in said
    assert "end token <|end|>, put after every answer" in said
    assert "tokens: <|user|> 1 0" in said
    assert "<|end|> <|assistant|>" in said
    assert f"--model.path {model}" in said


def test_rows_longer_than_the_model_are_an_error(check, model):
    code, said = check([*GOOD, {"prompt": "7" * 80, "answer": "1"}], "--model.path", model)
    assert code == 1
    assert "1 of 21 rows are longer than the 64 tokens" in said
    assert "(first: line 21, 85)" in said


def test_prompts_over_the_default_limit_raise_it_in_the_command(check, tmp_path):
    folder = save_model(tmp_path / "wide")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 999}))
    _, said = check([{"prompt": "7" * 300, "answer": "1" * 90}], "--model.path", str(folder))
    assert "--generation.max-prompt-tokens 320 --generation.max-new-tokens 96" in said


def test_a_model_without_a_template_is_an_error(check, tmp_path):
    folder = save_model(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    code, said = check(GOOD, "--model.path", str(folder))
    assert code == 1
    assert "has no chat template" in said


def test_a_base_model_is_given_a_template_by_name(check, tmp_path):
    folder = save_model(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    words = ["--model.path", str(folder), "--tokenizer.chat-template", "plain"]
    code, said = check(GOOD, *words)
    assert code == 0
    train = [line for line in said.splitlines() if line.startswith("Next      llmgym train")]
    assert all(line.endswith("--tokenizer.chat-template plain") for line in train)
    assert train
    assert "do not come back" not in said


def test_a_template_that_takes_off_space_loses_no_answer(check, tmp_path):
    folder = save_model(tmp_path / "trimmed")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text("utf-8").replace("message.content", "message.content | trim"))
    rows = [{"prompt": f"Name {n}", "answer": f" {n} "} for n in range(3)]
    code, said = check(rows, "--model.path", str(folder))
    assert code == 0
    assert "do not come back" not in said


def test_a_file_that_is_not_there_is_wrong_usage(capsys):
    assert cli.main(["data", "check", "no_such.jsonl"]) == 2
    assert "there is no file no_such.jsonl" in capsys.readouterr().err


def test_json_says_the_same(check, model):
    code, said = check(GOOD, "--json", "--model.path", model)
    found = json.loads(said)
    assert code == 0
    assert found["characters"] == {"prompt": [9, 9, 9, 9], "answer": [2, 2, 2, 2]}
    assert found["tokens"]["answer"] == [3, 3, 3, 3]
    assert found["errors"] == found["warnings"] == []
    code, said = check("", "--json")
    assert code == 1
    assert "has no rows" in json.loads(said)["errors"][0]


def test_percentiles_are_lengths_that_occur():
    assert percentiles([5]) == (5, 5, 5, 5)
    assert percentiles([*range(1, 101)]) == (1, 51, 96, 100)


def test_rows_that_end_with_their_answer_are_an_error_until_it_is_said_what_they_are(check):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"{n}"},
            ]
        }
        for n in range(20)
    ]
    code, said = check(rows, "--prompt-column", "messages")
    assert code == 1
    assert 'my.jsonl, line 1, column "messages" ends with the assistant\'s answer' in said
    assert "(20 rows like this)" in said
    code, said = check(rows, "--prompt-column", "messages", "--last-assistant", "split")
    assert code == 0
    assert "line 1  Say 0.  ->  0" in said
    sft, ppo = [line for line in said.splitlines() if line.startswith("Next")]
    assert sft.endswith("--data.prompt-column messages --data.last-assistant split")
    assert ppo.endswith("prompt_column messages --envs.0.kwargs.last_assistant split")


def test_numbers_are_answers_to_compare_with_and_not_to_learn(check):
    code, said = check([{"prompt": f"{n}", "answer": n} for n in range(20)])
    assert code == 0
    assert "llmgym sft" not in said
    assert "--envs.0.kwargs.answer_column answer" in said
