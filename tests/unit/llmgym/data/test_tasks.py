"""Tasks from lists, generators and files; splits; the order in which they are handed out."""

import json
import os
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgym.data.files import read_table
from llmgym.data.rows import Columns, task_id
from llmgym.data.splits import read_split
from llmgym.data.tasks import (
    TaskSampler,
    disjoint,
    from_file,
    from_hf,
    from_list,
    num_tasks,
    procedural,
)
from llmgym.errors import MissingExtraError, TaskSourceError
from llmgym.messages import Message, Task


def drawn(rng, level):
    prompt = f"{level}:{int(rng.integers(10**9))}"
    return Task(id=task_id(prompt), prompt=prompt, level=level)


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cells(path):
    return [dict(row) for _, row in read_table(path)]


def test_equal_prompts_are_one_task_on_every_machine():
    # sha256 of the JSON text '"What?"', computed with sha256sum.
    assert task_id("What?") == "a3cc0d53a54bf8a2"
    dialogue = (Message("user", "What?"),)
    assert task_id(dialogue) == task_id((Message("user", "What?"),)) != task_id("What?")
    assert task_id(dialogue) != task_id((Message("system", "What?"),))


def test_a_list_may_hold_prompts_mappings_or_tasks():
    task = drawn(np.random.default_rng(0), 1)
    assert from_list([task])[0] is task
    assert from_list(["a", "b"])[1].prompt == "b"
    columns = Columns(prompt="q", answer="a", solution="s")
    (made,) = from_list([{"q": "1+1", "a": 2, "s": "2", "more": [1]}], columns).tasks
    assert (made.prompt, made.answer, made.solution) == ("1+1", 2, "2")
    assert made.meta == {"a": 2, "s": "2", "more": [1]}


def test_messages_are_prompts_too():
    row = {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
    assert from_list([row])[0].prompt == (Message("system", "x"), Message("user", "y"))


@pytest.mark.parametrize("bad", ["", "  ", None, 3, [], ["a"], {"role": "user", "content": "a"}])
def test_a_prompt_that_is_none_is_refused_with_its_row(bad):
    with pytest.raises(TaskSourceError, match='list, row 2, column "prompt": a prompt is text'):
        from_list([{"prompt": "a"}, {"prompt": bad}])


def test_a_procedural_task_is_a_function_of_seed_and_number():
    source = procedural(drawn, seed=3, level=2)
    assert source[5] == source[5] == drawn(np.random.default_rng((3, 5)), 2)
    assert len({source[i].id for i in range(200)}) == 200
    assert procedural(drawn, seed=4)[5] != procedural(drawn, seed=3)[5]


def test_a_source_has_a_length_or_no_end():
    assert num_tasks(procedural(drawn)) is None
    assert num_tasks(procedural(drawn, size=7)) == 7
    assert num_tasks(from_list(["a"])) == 1
    with pytest.raises(IndexError, match="task 7"):
        procedural(drawn, size=7)[7]


def test_every_format_gives_the_same_tasks(tmp_path):
    rows = [{"prompt": 'say "hi", then go', "kind": "a"}, {"prompt": "caf\u00e9", "kind": "b"}]
    jsonl(tmp_path / "p.jsonl", *rows)
    (tmp_path / "p.csv").write_text('prompt,kind\n"say ""hi"", then go",a\ncaf\u00e9,b\n')
    (tmp_path / "p.tsv").write_text('prompt\tkind\nsay "hi", then go\ta\ncaf\u00e9\tb\n')
    for suffix in (".jsonl", ".csv", ".tsv"):
        path = tmp_path / f"p{suffix}"
        assert cells(path) == rows, suffix
        tasks = from_file(path).tasks
        assert [(task.prompt, task.meta["kind"]) for task in tasks] == [
            (row["prompt"], row["kind"]) for row in rows
        ], suffix


def test_a_task_knows_the_line_it_was_read_from_and_is_the_same_in_any_line(tmp_path):
    rows = '\n{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "a"}\n'
    (tmp_path / "p.jsonl").write_text(rows)
    tasks = from_file(tmp_path / "p.jsonl").tasks
    places = [f"{tmp_path}/p.jsonl, line {n}" for n in (2, 4, 5)]
    assert [task.place for task in tasks] == places
    assert tasks[0] == tasks[2]
    assert [task.place for task in from_list(["a"]).tasks] == ["list, row 1"]


def test_parquet_is_read_or_its_extra_is_named(tmp_path):
    path = tmp_path / "p.parquet"
    if find_spec("pyarrow") is None:
        path.write_bytes(b"PAR1")
        with pytest.raises(MissingExtraError, match=r"llmgym-rl\[data\]"):
            read_table(path)
        return
    rows = [{"prompt": "a", "more": [1, 2]}, {"prompt": "b", "more": None}]
    parquet = import_module("pyarrow.parquet")
    parquet.write_table(import_module("pyarrow").Table.from_pylist(rows), path)
    assert cells(path) == rows
    whole = path.read_bytes()
    for broken in (b"nothing", whole[:-40] + b"\xff" * 32 + whole[-8:]):
        path.write_bytes(broken)
        with pytest.raises(TaskSourceError, match="is not a Parquet file"):
            read_table(path)


def test_a_table_without_a_header_is_given_its_columns(tmp_path):
    (tmp_path / "p.tsv").write_text("one\t1\ntwo\t2\n")
    tasks = from_file(tmp_path / "p.tsv", Columns(prompt="text", names=("text", "n"))).tasks
    assert [(task.prompt, task.meta) for task in tasks] == [
        ("one", {"n": "1"}),
        ("two", {"n": "2"}),
    ]
    with pytest.raises(TaskSourceError, match="only CSV and TSV"):
        read_table(jsonl(tmp_path / "p.jsonl", {"a": 1}), ["a"])


def test_labels_become_names_by_policy(tmp_path):
    (tmp_path / "labels.txt").write_text("joy\nanger\nfear\n")
    path = tmp_path / "p.csv"
    path.write_text('prompt,label\none,2\ntwo,"1,0"\n')

    def labelled(policy):
        columns = Columns(label="label", labels=str(tmp_path / "labels.txt"), multi_label=policy)
        return [task.meta["label"] for task in from_file(path, columns).tasks]

    assert labelled("first") == ["fear", "anger"]
    assert labelled("drop") == ["fear"]
    assert labelled("all") == [("fear",), ("anger", "joy")]
    path.write_text("prompt,label\none,9\n")
    with pytest.raises(TaskSourceError, match=r"line 2: label '9' is not an id in \[0, "):
        labelled("first")


def test_label_names_are_found_beside_the_file(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text("one\t1\n")
    columns = Columns(prompt="text", names=("text", "label"), label="label")
    (tmp_path / "labels.txt").write_text("joy\nanger\n")
    assert from_file(path, columns).tasks[0].meta["label"] == "anger"


@pytest.mark.parametrize("label", ["-1", "3", "1.5", "", "a", "1,-1", [], None, 1.5])
def test_a_label_that_no_line_names_is_refused(tmp_path, label):
    (tmp_path / "labels.txt").write_text("joy\nanger\nfear\n")
    columns = Columns(label="label", labels=str(tmp_path / "labels.txt"))
    with pytest.raises(TaskSourceError, match=r"row 1(: label .* in \[0, 2\]| has no label)"):
        from_list([{"prompt": "a", "label": label}], columns)


def test_a_row_without_a_solution_has_none():
    rows = [{"prompt": "a", "gold": None}, {"prompt": "b", "gold": 3}]
    assert [one.solution for one in from_list(rows, Columns(solution="gold")).tasks] == [None, "3"]


def test_a_file_is_read_again_when_it_changes(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "old"})
    assert from_file(path) is from_file(path)
    assert from_file(path)[0].prompt == "old"
    jsonl(path, {"prompt": "new"})
    os.utime(path, ns=(1, 1))
    assert from_file(path)[0].prompt == "new"


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"prompt": "a"})
    with pytest.raises(
        TaskSourceError, match=r"no file .*trainn.jsonl.* Did you mean .*train.jsonl"
    ):
        from_file(tmp_path / "trainn.jsonl")
    with pytest.raises(TaskSourceError, match="no file"):
        from_file(tmp_path / "nowhere" / "train.jsonl")


def test_an_empty_file_is_refused(tmp_path):
    for name, text in (("a.jsonl", ""), ("b.jsonl", "\n\n"), ("c.csv", ""), ("d.csv", "prompt\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(TaskSourceError, match=f"{name} has no rows"):
            from_file(tmp_path / name)
    with pytest.raises(TaskSourceError, match="list has no rows"):
        from_list([])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', r"a\.jsonl, line 3 is not JSON"),
        ("b.jsonl", b'{"prompt": "a"}\n["a"]\n', r"b\.jsonl, line 2 must be a JSON object"),
        ("c.csv", b"prompt,b\na,1\nb\n", r"c\.csv, line 3 has 1 cells for 2 columns"),
        ("d.csv", b'prompt\n"open\n', r"d\.csv, line 2: unexpected end"),
        ("e.jsonl", b'{"prompt": "\xff"}\n', "is not UTF-8"),
        ("g.xlsx", b"", r'ends in "\.xlsx"; a data file ends in one of \.jsonl'),
        ("h.csv", b"prompt\n" + b"x" * 200_000 + b"\n", "line 2: field larger than"),
        ("i.jsonl", b"[" * 100_000, r"i\.jsonl, line 1 is not JSON"),
        ("j.csv", b"prompt,kind,prompt\na,b,c\n", r'j\.csv has two columns "prompt"'),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(TaskSourceError, match=message):
        from_file(tmp_path / name)


def test_a_missing_column_is_answered_with_those_there_are_and_the_setting(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(TaskSourceError) as caught:
        from_file(path)
    message = str(caught.value)
    assert f'{path} has no column "prompt"; it has question, answer.' in message
    assert "--data.prompt-column question" in message
    assert "--envs.0.kwargs.prompt_column question" in message
    with pytest.raises(TaskSourceError, match='no column "gold"'):
        from_file(path, Columns(prompt="question", answer="gold"))


def test_one_row_without_the_column_is_named_by_its_line(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompx": "b"})
    with pytest.raises(
        TaskSourceError, match=r'p\.jsonl, line 2, has no column "prompt"; it has p'
    ):
        from_file(path)


def test_a_data_set_of_the_hub_is_read_or_its_extra_is_named(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"q": "a", "more": 1}, {"q": "b", "more": 2})
    if find_spec("datasets") is None:
        with pytest.raises(MissingExtraError, match=r"llmgym-rl\[data\]"):
            from_hf(str(tmp_path))
        return
    tasks = from_hf(str(tmp_path), Columns(prompt="q"), split="train").tasks
    assert [(task.prompt, task.meta) for task in tasks] == [("a", {"more": 1}), ("b", {"more": 2})]


def test_overlapping_splits_are_refused_with_their_count():
    train, test = from_list(["a", "b", "c"]), from_list(["c", "d"])
    with pytest.raises(TaskSourceError, match="1 of 2 held-out tasks are also in train"):
        disjoint(train, test)
    disjoint(from_list(["a", "b"]), test)
    with pytest.raises(TaskSourceError, match="5 of 5"):
        disjoint(procedural(drawn), procedural(drawn, size=5))


def test_a_folder_and_a_pair_of_files_are_two_splits(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"prompt": "a"}, {"prompt": "b"})
    jsonl(tmp_path / "test.jsonl", {"prompt": "c"})
    for path in (tmp_path, tmp_path / "train.jsonl"):
        assert len(read_split(path, "train", Columns())) == 2
        assert read_split(path, "test", Columns())[0].prompt == "c"
    assert read_split(tmp_path / "test.jsonl", "test", Columns())[0].prompt == "c"
    with pytest.raises(TaskSourceError, match='split must be "train", "test" or "all"'):
        read_split(tmp_path, "valid", Columns())


@pytest.mark.parametrize("name", ["train", "latest", "constrained", "pretrain_set", "contest"])
def test_a_lone_file_is_split_without_overlap_whatever_letters_its_name_holds(tmp_path, name):
    path = jsonl(tmp_path / f"{name}.jsonl", *({"prompt": str(i)} for i in range(20)))
    train, test = (read_split(path, split, Columns()) for split in ("train", "test"))
    disjoint(train, test)
    assert (len(train), len(test)) == (18, 2)


@pytest.mark.parametrize("name", ["test", "my-test", "Test_2"])
def test_a_file_named_for_testing_is_held_out_whole(tmp_path, name):
    path = jsonl(tmp_path / f"{name}.jsonl", *({"prompt": str(i)} for i in range(20)))
    assert len(read_split(path, "test", Columns())) == 20


@given(st.lists(st.integers(0, 60), min_size=2, max_size=80))
def test_one_file_is_split_without_overlap_or_loss(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    jsonl(path, *({"prompt": str(number)} for number in numbers))
    if len(set(numbers)) == 1:
        with pytest.raises(TaskSourceError, match="none can be held out"):
            read_split(path, "test", Columns())
        return
    train, test = (read_split(path, split, Columns()) for split in ("train", "test"))
    disjoint(train, test)
    assert len(train) + len(test) == len(read_split(path, "all", Columns())) == len(numbers)
    assert len({task.id for task in test.tasks}) == max(1, len(set(numbers)) // 10)


def epochs(length, world_size, per_call, num_calls, samplers=None):
    """Collect what all ranks together were handed, in the order of the global position."""
    samplers = samplers or [
        TaskSampler(length, 7, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    calls = [[sampler.next(per_call) for sampler in samplers] for _ in range(num_calls)]
    return [index for call in calls for block in call for index in block], samplers


@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(length=st.integers(1, 30), per_call=st.integers(1, 5))
def test_every_task_once_an_epoch_at_any_number_of_ranks(world_size, length, per_call):
    num_calls = -(-2 * length // (per_call * world_size))
    handed, _ = epochs(length, world_size, per_call, num_calls)
    assert sorted(handed[:length]) == list(range(length))
    assert sorted(handed[length : 2 * length]) == list(range(length))


def test_the_global_order_does_not_depend_on_the_number_of_ranks():
    orders = [epochs(12, world_size, 6 // world_size, 6)[0] for world_size in (1, 2, 3)]
    assert orders[0] == orders[1] == orders[2]
    assert orders[0][:12] != orders[0][12:24], "each epoch has its own order"


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 1), (1, 2)])
def test_a_resume_goes_on_losslessly_also_at_another_number_of_ranks(before, after):
    whole, _ = epochs(11, 1, 6, 4)
    first, samplers = epochs(11, before, 6 // before, 2)
    state = json.loads(json.dumps(samplers[0].state_dict()))
    resumed = [TaskSampler(11, 7, rank=rank, world_size=after) for rank in range(after)]
    for sampler in resumed:
        sampler.load_state_dict(state)
    assert all(sampler.state_dict() == state for sampler in samplers)
    assert first + epochs(11, after, 6 // after, 2, resumed)[0] == whole


def test_a_source_without_end_is_counted_up():
    handed, _ = epochs(None, 2, 3, 2)
    assert handed == list(range(12))


def test_a_state_of_other_tasks_or_another_seed_is_refused():
    state = TaskSampler(10, 1).state_dict()
    with pytest.raises(TaskSourceError, match="has length 10, this run has 11"):
        TaskSampler(11, 1).load_state_dict(state)
    with pytest.raises(TaskSourceError, match="has seed 1, this run has 2"):
        TaskSampler(10, 2).load_state_dict(state)
    with pytest.raises(TaskSourceError, match="source of 0 tasks"):
        TaskSampler(0)
    with pytest.raises(TaskSourceError, match=r"rank must be in \[0, 2\), got 2"):
        TaskSampler(5, rank=2, world_size=2)
