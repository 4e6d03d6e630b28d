"""What `llmgym launch` makes of settings and hostfiles, and what it refuses."""

import pytest

from trainers.cli.main import main
from trainers.config.files import presets, read
from trainers.distributed.collectives import World
from trainers.errors import ConfigError
from trainers.runner.assemble import check_shares


@pytest.mark.parametrize(
    ("words", "nodes", "gpus"),
    [
        (["slurm", "--", "llama_70b_4x8_zero3_offload"], 4, 8),
        (["slurm", "--nodes", "2", "--", "llama_70b_4x8_zero3_offload"], 2, 8),
        (["torchrun", "--gpus", "4", "--", "llama_8b_1x8_zero3_offload"], 1, 4),
        (["torchrun", "--", "quickstart"], 1, 8),
        (["deepspeed", "--", "quickstart", "--gpus", "2"], 1, 2),
    ],
)
def test_nodes_and_gpus_are_written_into_the_command(words, nodes, gpus, capsys):
    assert main(["launch", *words]) == 0
    script = capsys.readouterr().out.replace("\\\n    ", "")
    assert f"--backend.nodes {nodes} --backend.gpus {gpus} --resume" in script


@pytest.mark.parametrize("preset", [name for name in presets() if "zero3" in name])
def test_a_preset_of_a_cluster_divides_among_its_ranks(preset):
    config = read([presets()[preset]])
    shape = f"{config.backend.nodes}x{config.backend.gpus}"
    assert shape == preset.split("_")[2]
    check_shares(config, World(size=config.backend.ranks))
    with pytest.raises(ConfigError, match=f"are {config.backend.ranks} ranks, and 1 were started"):
        check_shares(config, World())


@pytest.fixture
def hosts(tmp_path):
    """Write a hostfile of so many hosts, with so many slots each."""

    def written(count, slots=8):
        file = tmp_path / "hosts"
        file.write_text("".join(f"n{i} slots={slots}\n" for i in range(1, count + 1)), "utf-8")
        return ["--hostfile", str(file)]

    return written


def test_the_first_hosts_of_a_file_are_taken_as_the_settings_ask(hosts, capsys):
    words = ["deepspeed", *hosts(3), "--", "llama_8b_1x8_zero3_offload"]
    assert main(["launch", *words]) == 0
    said = capsys.readouterr()
    script = said.out.replace("\\\n    ", "")
    assert "--num_nodes 1 --num_gpus 8" in script
    assert "--backend.nodes 1 --backend.gpus 8" in script
    assert said.err.startswith("used of ")
    assert said.err.endswith("hosts, with slots: n1 8\n")
    assert main(["launch", "deepspeed", *hosts(5, 16), "--", "qwen_32b_4x8_zero3_offload"]) == 0
    said = capsys.readouterr()
    assert "--ranks 32 --nodes 4 --gpus 8" in said.out.replace("\\\n    ", "")
    assert "with slots: n1 8, n2 8, n3 8, n4 8\n" in said.err


def test_all_hosts_of_a_file_are_taken_where_the_settings_ask_for_none(hosts, capsys):
    assert main(["launch", "deepspeed", *hosts(2, 4), "--", "quickstart"]) == 0
    said = capsys.readouterr()
    assert "--backend.nodes 2 --backend.gpus 4" in said.out.replace("\\\n    ", "")
    assert said.err == ""


@pytest.mark.parametrize(
    ("count", "slots", "options", "said"),
    [
        (3, 8, [], "names 3 hosts, fewer than the 4 nodes asked for. Add hosts to it, or take "
         "--nodes 3."),
        (4, 4, [], "n1 has 4 slots, fewer than the 8 GPUs of a host asked for. Correct the file, "
         "or take --gpus 4."),
        (4, 8, ["--exclude", "n3"], "ask for 4 x 8 ranks, and the choice leaves 3 x 8: n1 8, n2 8, "
         "n4 8. Choose others, or end the words behind -- with --nodes 3 --gpus 8"),
    ],
)  # fmt: skip
def test_hosts_that_do_not_fit_the_settings_are_refused(count, slots, options, said, hosts, capsys):
    words = ["deepspeed", *hosts(count, slots), *options, "--", "qwen_32b_4x8_zero3_offload"]
    assert main(["launch", *words]) == 2
    assert said in capsys.readouterr().err
    if options:
        assert main(["launch", *words, "--nodes", "3", "--ppo.num-prompts", "240"]) == 0


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "slurm"])
def test_a_batch_that_ranks_cannot_share_is_refused_as_a_start_would(launcher, capsys):
    words = [launcher, "--nodes", "3", "--", "llama_8b_1x8_zero3_offload"]
    assert main(["launch", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    with pytest.raises(ConfigError) as start:
        check_shares(read([presets()["llama_8b_1x8_zero3_offload"]], {"backend.nodes": 3}),
                     World(size=24))  # fmt: skip
    assert said.err == f"ConfigError: {start.value}\n"
    assert "cannot be shared by 24 ranks. Nearest ppo.num_prompts: 120 or 144." in said.err
    assert main(["launch", *words, "--ppo.num-prompts", "144"]) == 0


def test_hosts_with_unequal_slots_are_refused_until_so_many_of_each_are_chosen(tmp_path, capsys):
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=3\nb slots=2\n", "utf-8")
    words = ["launch", "deepspeed", "--hostfile", str(hosts)]
    assert main([*words, "--", "quickstart"]) == 2
    assert "as many slots each, got a 3, b 2. --gpus 2 takes so many" in capsys.readouterr().err
    assert main([*words, "--gpus", "2", "--", "quickstart"]) == 0
    assert "--num_nodes 2 --num_gpus 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slurm"], "nothing stands behind --"),
        (["slurm", "--hostfile", "h", "--", "quickstart"], "--hostfile has no meaning for slurm"),
        (["slurm", "--nodes", "0", "--", "quickstart"], "--nodes must be 1 or more, got 0."),
        (["deepspeed", "--include", "a", "--", "quickstart"], "Add --hostfile FILE."),
        (["deepspeed", "--hostfile", "none", "--", "quickstart"], "the hostfile none cannot be"),
        (["slurm", "--", "quickstrat"], 'no preset "quickstrat". Did you mean quickstart?'),
        (["slurm", "--", "quickstart", "--clean"], "--clean would lose the work"),
    ],
)
def test_what_cannot_be_launched_is_refused(words, said, capsys):
    assert main(["launch", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_name_of_a_hostfile_stays_in_its_comment(tmp_path, capsys):
    hosts = tmp_path / "hosts\ntouch planted"
    hosts.write_text("one slots=1\n", "utf-8")
    words = ["launch", "deepspeed", "--hostfile", str(hosts), "--", "quickstart"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("touch planted has")]
    assert [line for line in lines if line.startswith("# touch planted has a line a host")]
