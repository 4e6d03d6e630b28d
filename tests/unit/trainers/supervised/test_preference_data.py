"""What a reward model learns from: classes by labels, pairs, and what is refused."""

import json
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from llmgym.errors import TaskSourceError
from trainers.config import Config, DataConfig, PPOConfig, RewardModelConfig
from trainers.errors import ConfigError
from trainers.supervised.preference_data import (
    RewardModelExample,
    file_of_test,
    labeled_examples,
    preferences,
    split_subjects,
    tokenize_labeled,
)

GROUPS = {"other": ["negative", "neutral"], "positive": ["positive"]}
LABELS = "ambiguous\nnegative\nneutral\npositive\n"
PAIRS = [
    {"prompt": "hi", "chosen": "hello", "rejected": "go", "by": 1},
    {"prompt": "a", "chosen": "b", "rejected": "c", "by": 0.5},
]


def config(data=None, **stage):
    return Config(
        data=DataConfig(**(data or {})),
        reward_model=RewardModelConfig(num_epochs=1, **stage),
        ppo=PPOConfig(num_iterations=0),
    )


def emotions(folder, text, **stage):
    """Read a header-less file of text and labels, with the names of the labels beside it."""
    (folder / "labels.txt").write_text(LABELS)
    (folder / "train.tsv").write_text(text)
    data = {"columns": ["text", "labels"], "response_column": "text"}
    given = {"label_column": "labels", "groups": GROUPS, **stage}
    return labeled_examples(config(data, **given), str(folder / "train.tsv"))


def test_a_row_is_of_the_class_that_all_its_labels_belong_to(tmp_path):
    rows, classes, left = emotions(tmp_path, "a\t1,2\nb\t3\nc\t1,3\nd\t0\ne\t0,3\n")
    assert classes.names == ("other", "positive")
    assert [(one.responses, one.label) for one in rows] == [(("a",), 0), (("b",), 1)]
    assert left == 3
    assert rows[1].place.endswith("train.tsv, line 2")


def test_a_class_a_label_without_groups_in_the_order_of_their_file(tmp_path):
    rows, classes, left = emotions(tmp_path, "a\t1\nb\t3\nc\t0\nd\t2\ne\t0,3\n", groups=None)
    assert classes.names == ("ambiguous", "negative", "neutral", "positive")
    assert ([one.label for one in rows], left) == ([1, 3, 0, 2], 1)


def test_labels_may_be_names_and_come_from_parquet(tmp_path):
    rows = [{"response": "a", "prompt": "p", "label": ["good"]},
            {"response": "b", "prompt": "p", "label": ["bad"]}]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    found, classes, _ = labeled_examples(config(label_column="label"), str(tmp_path / "r.parquet"))
    assert classes.names == ("bad", "good")
    assert [one.label for one in found] == [1, 0]
    assert found[0].messages == ({"role": "user", "content": "p"},)


def test_the_test_files_labels_are_sorted_into_the_classes_of_training(tmp_path):
    _, classes, _ = emotions(tmp_path, "a\t1\nb\t3\n")
    (tmp_path / "test.tsv").write_text("x\t3\ny\t0\n")
    data = {"columns": ["text", "labels"], "response_column": "text"}
    settings = config(data, label_column="labels", groups=GROUPS)
    rows, same, left = labeled_examples(settings, str(tmp_path / "test.tsv"), classes)
    assert (same, [one.label for one in rows], left) == (classes, [1], 1)


@pytest.mark.parametrize(
    ("text", "stage", "said"),
    [
        ("a\t1\n", {}, r'class "positive" has no row; rows of each: other 1, positive 0.*'
                       r'Labels in column "labels" of .*: negative \(1 x\)'),
        ("a\t1\nb\tjoy\n", {}, r"line 2: label 'joy' is not an id in \[0, 3\]"),
        ("a\t\n", {}, r"line 1: label '' is not an id"),
        ("a\t1\n", {"label_column": "emotion"}, r'no column "emotion"; it has text, labels'),
        ("a\t1\n", {"label_column": "text"}, r"label 'a' is not an id in \[0, 3\]"),
        ("a\t1\n\t3\n", {}, r'line 2, column "text": a response is text that is not empty'),
        ("a\t1\tx\n", {}, r"line 1 has 3 cells for 2 columns \(text, labels\): a \| 1 \| x"),
        ("a\t1\n", {"groups": {"x": ["joyful"], "y": ["positive"]}},
         r'groups.x lists "joyful".*ambiguous, negative, neutral, positive'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_labels_is_named(tmp_path, text, stage, said):
    with pytest.raises((TaskSourceError, ConfigError), match=f"(?s){said}"):
        emotions(tmp_path, text, **stage)


def test_a_column_that_holds_no_labels_is_told_by_their_number(tmp_path):
    rows = [{"prompt": "p", "response": f"r{n}", "id": f"x{n}"} for n in range(40)]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r'column "id" has 40 labels in 40 rows: x0 \(1 x\)'):
        labeled_examples(config(label_column="id"), str(tmp_path / "r.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_are_read_from_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, PAIRS)))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), path)
    else:
        cut = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [cut.join(PAIRS[0]), *(cut.join(map(str, row.values())) for row in PAIRS)]
        path.write_text("\n".join(lines) + "\n")
    found = preferences(config(margin_column="by"), str(path))
    assert [(one.responses, one.margin) for one in found] == [
        (("hello", "go"), 1.0),
        (("b", "c"), 0.5),
    ]
    assert found[0].messages == ({"role": "user", "content": "hi"},)
    assert len(preferences(config(), str(path), limit=1)) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            r"line 2: chosen equals rejected \('b'\)",
        ),
        ({"prompt": "a", "chosen": "b"}, r'line 2 has no column "rejected"; it has prompt, chosen'),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, r'line 2, column "rejected": a response'),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, r'column "prompt": a prompt is text'),
        (
            {**PAIRS[1], "by": -1},
            r'line 2, column "by": a margin is a number of at least 0, got -1',
        ),
        ({**PAIRS[1], "by": "far"}, r"a margin is a number of at least 0, got 'far'"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(tmp_path, row, said):
    (tmp_path / "p.jsonl").write_text(
        f"{json.dumps(PAIRS[0])}\n{json.dumps({**row, 'by': row.get('by', 1)})}\n"
    )
    with pytest.raises(TaskSourceError, match=said):
        preferences(config(margin_column="by"), str(tmp_path / "p.jsonl"))


class Letters:
    """One id a letter."""

    chat_template, all_special_tokens = None, ()
    added_tokens_decoder = {}  # noqa: RUF012

    def __call__(self, text, *, add_special_tokens):
        return SimpleNamespace(input_ids=[*map(ord, text.strip("\u200b"))])


def pairs_of(tmp_path, *rows):
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return preferences(config(), str(tmp_path / "p.jsonl"))


def test_a_row_over_the_context_is_named_or_dropped(tmp_path):
    long = {"prompt": "a" * 5, "chosen": "b", "rejected": "c" * 9}
    rows = pairs_of(tmp_path, PAIRS[0], long)
    with pytest.raises(ConfigError, match=r"line 2 has 15 tokens.*takes 10.*--data.too-long drop"):
        tokenize_labeled(Letters(), rows, longest=10, too_long="raise")
    kept, dropped = tokenize_labeled(Letters(), rows, longest=10, too_long="drop")
    assert (len(kept), dropped) == (1, 1)
    assert kept[0].texts == (tuple(map(ord, "hi hello")), tuple(map(ord, "hi go")))
    with pytest.raises(ConfigError, match="no row fits the reward model's 3 tokens"):
        tokenize_labeled(Letters(), rows, longest=3, too_long="drop")


def test_a_response_of_no_token_is_refused(tmp_path):
    data = {"prompt_column": ""}
    (tmp_path / "p.jsonl").write_text(json.dumps({"chosen": "a", "rejected": "\u200b"}))
    rows = preferences(config(data), str(tmp_path / "p.jsonl"))
    with pytest.raises(ConfigError, match=r"line 1: the tokenizer makes no token of a response"):
        tokenize_labeled(Letters(), rows, longest=9, too_long="raise")


def test_a_prompt_is_on_one_side_of_the_split_with_all_its_rows():
    rows = [
        RewardModelExample(texts=((n,), (n + 1,)), subject=f"prompt {n % 10}") for n in range(30)
    ]
    train, held_out = split_subjects(rows, 0.3, seed=1)
    assert (len(train), len(held_out)) == (21, 9)
    assert not {one.subject for one in train} & {one.subject for one in held_out}
    assert split_subjects(rows, 0.3, seed=1) == (train, held_out)
    assert split_subjects(rows, 0.3, seed=2) != (train, held_out)
    assert split_subjects(rows[:1], 0.9, seed=1) == (rows[:1], [])


def test_the_test_file_is_the_one_named_or_the_one_beside_train(tmp_path):
    train = str(tmp_path / "train.tsv")
    assert file_of_test(config({"path": train})) is None
    (tmp_path / "test.tsv").touch()
    assert file_of_test(config({"path": train})) == str(tmp_path / "test.tsv")
    assert file_of_test(config({"path": train}, test="other.tsv")) == "other.tsv"
    assert file_of_test(config({"path": str(tmp_path / "test.tsv")})) is None


@pytest.mark.data
def test_the_emotions_are_grouped_by_the_rule(data_dir):
    settings = config(
        {"columns": ["text", "labels", "id"], "response_column": "text"},
        label_column="labels",
        groups=GROUPS,
    )
    rows, classes, left = labeled_examples(settings, str(data_dir / "goemotions" / "train.tsv"))
    counts = [sum(one.label == number for one in rows) for number in range(2)]
    assert (classes.names, counts, left) == (("other", "positive"), [21_439, 15_216], 6_755)
