"""Two hosts with addresses, names and an sshd of their own, trained over by the printed scripts."""

import pytest

from scripts.evidence import multi_node

pytestmark = [
    pytest.mark.slow, pytest.mark.deepspeed, pytest.mark.hosts, pytest.mark.timeout(1500),
]  # fmt: skip


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return multi_node.main(tmp_path_factory.mktemp("hosts"))


def test_both_launchers_train_over_two_hosts_to_the_same_weights(figures):
    assert {*figures["status"].values()} == {"finished"}
    assert figures["weights"]["by-deepspeed"] == figures["weights"]["by-torchrun"]


@pytest.mark.parametrize(
    ("lost", "rank", "name"), [("second", 1, "llmgym-node-2"), ("first", 0, "llmgym-node-1")]
)
def test_a_lost_host_is_named_in_time_and_the_run_goes_on_to_the_same_weights(
    lost, rank, name, figures
):
    found = figures[f"{lost}_lost"]
    assert found["noticed_after_s"] < figures["timeout_s"] + 15
    assert f"rank {rank} ({name}) did not finish" in found["messages"][0]
    assert f"logs/attempt_1/rank_{rank}.log" in found["messages"][0]
    assert found["code"] == 0
    assert found["attempts"] >= 2
    assert figures["weights"][f"{lost}-lost"] == figures["weights"]["by-deepspeed"]


def test_a_host_that_does_not_answer_is_named_before_a_rank_starts(figures):
    assert "llmgym-node-2 does not answer over ssh" in figures["second_lost"]["check"]
