"""A hostfile is read strictly, filtered as deepspeed does it, and its hosts must answer."""

import pytest

from trainers.cli.hostfile import check_reachable, chosen, count, read_hostfile
from trainers.cli.main import main
from trainers.errors import BackendError, ConfigError

POOL = {"a": [0, 1, 2], "b": [0, 1], "c": [0]}


def written(tmp_path, text):
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8")
    return file


def test_comments_and_empty_lines_are_no_hosts_and_the_order_is_kept(tmp_path):
    file = written(tmp_path, "# two hosts\n\nnode-2 slots=2\n 10.0.0.1\tslots=1  # the small one\n")
    hosts = read_hostfile(file)
    assert list(hosts.items()) == [("node-2", [0, 1]), ("10.0.0.1", [0])]
    assert count(hosts) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=2\nb slot=2\n", ":2: 'b slot=2' must be \"NAME slots=8\""),
        ("a slots=8x\n", ":1: 'a slots=8x' must be"),
        ("a, slots=8\n", ":1: 'a, slots=8' must be"),
        ("a\n", ":1: 'a' must be"),
        ("a slots=1\n\na slots=2\n", ":3: a stands there twice. Keep one line."),
        ("a slots=0\n", ":1: a has 0 slots. Drop the line."),
        ("# a slots=8\n", "names no host."),
    ],
)
def test_a_hostfile_with_a_mistake_is_refused_by_line(tmp_path, text, said):
    with pytest.raises(ConfigError) as raised:
        read_hostfile(written(tmp_path, text))
    assert said in str(raised.value)


def test_every_mistake_of_a_hostfile_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s):1: .*:2: .*:3: "):
        read_hostfile(written(tmp_path, "a=8\nb slots=\nc slots=0\n"))


def test_a_missing_hostfile_is_an_error_and_no_run_on_this_machine_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file.*this machine alone"):
        read_hostfile(tmp_path / "hots")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, POOL),
        ({"nodes": 2}, {"a": [0, 1, 2], "b": [0, 1]}),
        ({"gpus": 1}, {"a": [0], "b": [0], "c": [0]}),
        ({"nodes": 1, "gpus": 2}, {"a": [0, 1]}),
        ({"include": "b@a:2,0"}, {"a": [0, 2], "b": [0, 1]}),
        ({"exclude": "a:1@c"}, {"a": [0, 2], "b": [0, 1]}),
    ],
)
def test_options_choose_the_hosts_that_deepspeed_would(options, left):
    assert chosen(POOL, **options) == left


@pytest.mark.deepspeed
@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("text", ["a", "b:1", "c@a:0,2", "a:2@b", "b:0,1"])
def test_the_choice_is_deepspeeds_own(option, text):
    from deepspeed.launcher.runner import parse_inclusion_exclusion  # noqa: PLC0415

    slots = {host: len(numbers) for host, numbers in POOL.items()}
    words = {"include": "", "exclude": "", option: text}
    theirs = parse_inclusion_exclusion(slots, words["include"], words["exclude"])
    assert chosen(POOL, **{option: text}) == theirs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"include": "a", "exclude": "b"}, "cannot be combined"),
        ({"include": "a", "nodes": 1}, "drop --nodes and --gpus"),
        ({"include": "d"}, "there is no d in the hostfile. It has a, b, c."),
        ({"include": "a:3"}, "a has 3 slots, from 0 on, and no 3."),
        ({"include": "a:x"}, '\'a:x\' must be "NAME" or "NAME:0,1".'),
        ({"include": "a@a:0"}, "a stands there twice"),
        ({"exclude": "a@b@c"}, "leaves no host"),
        (
            {"nodes": 4},
            "names 3 hosts, fewer than the 4 nodes asked for. Add hosts",
        ),
        (
            {"gpus": 2},
            "c has 1 slot, fewer than the 2 GPUs of a host asked for.",
        ),
    ],
)
def test_a_choice_that_the_hosts_do_not_have_is_refused(options, said):
    with pytest.raises(ConfigError) as raised:
        chosen(POOL, **options)
    assert said in str(raised.value)


def test_every_host_that_does_not_answer_is_named_with_what_ssh_said(tmp_path):
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\n[ "$1" = a ] || { echo "no route to $1" >&2; exit 255; }\n')
    ssh.chmod(0o755)
    check_reachable(["a"], [str(ssh)])
    with pytest.raises(BackendError) as raised:
        check_reachable(["a", "b", "c"], [str(ssh)])
    said = str(raised.value)
    assert "b does not answer over ssh: no route to b\nc does not" in said
    assert "a does not" not in said
    assert "No rank was started." in said


def test_the_check_counts_ranks_before_it_asks_hosts(tmp_path, capsys):
    file = written(tmp_path, "a slots=2\nb slots=2\n")
    assert main(["launch", "check", "--hostfile", str(file), "--ranks", "8"]) == 2
    assert "8 ranks are wanted, and the hostfile gives 4: a 2, b 2." in capsys.readouterr().err
