"""Two hosts on one machine: trained over, one of them lost in mid-run, and gone on with.

A host is a network namespace with an address, a name and an sshd of its own; a veth pair is the
cable. The scripts that `llmgym launch` prints start the ranks, by deepspeed over pdsh and ssh, or
by torchrun. Needs root, and the Debian packages iproute2, openssh-server and pdsh.

Run: python scripts/evidence/multi_node.py FOLDER
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("llmgym-node-1", "llmgym-node-2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = ("llmgym-veth1", "llmgym-veth2")
TIMEOUT = 40
ITERATIONS = 4
WORDS = f"""
    quickstart -c {ROOT}/configs/backends/zero2.yaml --data.num-examples 32 --sft.num-epochs 1
    --sft.batch-size 16 --ppo.num-iterations {ITERATIONS} --ppo.num-prompts 8
    --ppo.num-minibatches 2
    --eval.num-tasks 4 --log.wandb.enabled false --checkpoint.every 1
    --backend.timeout-seconds {TIMEOUT}
""".split()


def called(*words: str, check: bool = True) -> str:
    """Run a command; return what it printed."""
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A network namespace that looks like a machine.

    Attributes:
        number: 0 or 1.
        settings: what lies over /etc in it: hosts, and sshd's keys and settings.
    """

    number: int
    settings: Path

    @property
    def name(self) -> str:
        """Its name, in its own eyes and to the other."""
        return NAMES[self.number]

    def inside(self, *words: str) -> list[str]:
        """Return the command that runs another one on this host."""
        script = 'hostname "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", script,
                self.name, *words]  # fmt: skip

    def boot(self) -> None:
        """Plug the cable in and let ssh answer."""
        called("ip", "-n", self.name, "link", "set", CABLE[self.number], "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        called(*self.inside("/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config"))

    def lose(self) -> None:
        """Pull the cable, so that nobody hears of it, and end every process."""
        called("ip", "-n", self.name, "link", "set", CABLE[self.number], "down")
        self.clear()

    def clear(self) -> None:
        """End every process of this host."""
        for word in called("ip", "netns", "pids", self.name, check=False).split():
            try:
                os.kill(int(word), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself


def build(folder: Path) -> list[Host]:
    """Make both hosts and the cable; their files are in /etc/netns while they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    key.unlink(missing_ok=True)
    called("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    hosts = []
    for number, name in enumerate(NAMES):
        settings = Path("/etc/netns") / name
        (settings / "ssh").mkdir(parents=True)
        lines = [f"{address} {name}" for address, name in zip(ADDRESSES, NAMES, strict=True)]
        (settings / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        (settings / "ssh" / "ssh_config").write_text(
            f"IdentityFile {key}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
            "LogLevel ERROR\n"
        )
        (settings / "ssh" / "sshd_config").write_text(
            f"ListenAddress {ADDRESSES[number]}\nHostKey {key}\nAuthorizedKeysFile {key}.pub\n"
            f"PidFile {folder}/{name}.pid\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        )
        called("ip", "netns", "add", name)
        hosts.append(Host(number=number, settings=settings))
    called("ip", "link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
    for host, cable, address in zip(hosts, CABLE, ADDRESSES, strict=True):
        called("ip", "link", "set", cable, "netns", host.name)
        called("ip", "-n", host.name, "addr", "add", f"{address}/24", "dev", cable)
        called("ip", "-n", host.name, "link", "set", "lo", "up")
        host.boot()
    return hosts


def remove() -> None:
    """Take both hosts away, and whatever a start that failed has left of them."""
    for number, name in enumerate(NAMES):
        settings = Path("/etc/netns") / name
        Host(number=number, settings=settings).clear()
        called("ip", "netns", "del", name, check=False)
        for file in sorted(settings.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        if settings.is_dir():
            settings.rmdir()


def script(folder: Path, launcher: str, name: str) -> Path:
    """Print the script that starts a run of both hosts; return its file."""
    options = (
        ["--hostfile", "hosts"] if launcher == "deepspeed" else ["--nodes", "2", "--gpus", "1"]
    )
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    words = [*WORDS, "--name", name, "--run.dir", str(folder / "runs")]
    made = subprocess.run(
        [sys.executable, "-m", "trainers.cli", "launch", launcher, *options, "--", *words],
        cwd=folder, env=environment(), check=True, capture_output=True, text=True,
    )  # fmt: skip
    file = folder / f"{name}.sh"
    file.write_text(made.stdout)
    return file


def environment() -> dict[str, str]:
    """Return the environment of a login: this checkout, its Python, no GPU."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **more, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def begun(
    host: Host, file: Path, *words: str, log: Path, more: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a script on a host; what it says goes to a file."""
    link = file.parent / "scripts"
    if not link.exists():
        link.symlink_to(ROOT / "scripts")
    with log.open("a") as stream:
        return subprocess.Popen(
            host.inside("bash", str(file), *words), cwd=file.parent,
            env={**environment(), "PAUSE": "3", **more}, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def waited(is_done: Callable[[], bool], what: str, seconds: float = 400) -> float:
    """Return how long it took until something was found.

    Raises:
        TimeoutError: it was not.
    """
    began = time.monotonic()
    while not is_done():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - began


def iterations(run: Path) -> int:
    """Return how many iterations of PPO a run has logged."""
    file = run / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return text.count('"objective/kl"')


def weights(run: Path) -> str:
    """Return the digest of the policy and the critic that a run has exported."""
    files = sorted(run.glob("model/*.safetensors")) + sorted(run.glob("critic/*.safetensors"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def with_deepspeed(folder: Path, hosts: list[Host]) -> float:
    """Train by deepspeed over pdsh and ssh; return the seconds."""
    began = time.monotonic()
    log = folder / "deepspeed.txt"
    file = script(folder, "deepspeed", "by-deepspeed")
    code = begun(hosts[0], file, log=log, more={"ATTEMPTS": "1"}).wait(timeout=400)
    if code:
        raise RuntimeError(f"deepspeed ended with {code}: {log.read_text()[-3000:]}")
    return time.monotonic() - began


def with_torchrun(folder: Path, hosts: list[Host]) -> float:
    """Train by torchrun with static addresses; return the seconds."""
    began = time.monotonic()
    file = script(folder, "torchrun", "by-torchrun")
    started = [
        begun(host, file, str(host.number), NAMES[0], log=folder / f"torchrun-{host.number}.txt",
              more={"ATTEMPTS": "1"})
        for host in hosts
    ]  # fmt: skip
    codes = [process.wait(timeout=400) for process in started]
    if any(codes):
        raise RuntimeError(f"torchrun ended with {codes}: {folder}/torchrun-*.txt")
    return time.monotonic() - began


def without_second(folder: Path, hosts: list[Host]) -> dict[str, object]:
    """Lose the second host in mid-run, bring it back, and let the script of deepspeed go on."""
    log, run = folder / "second.txt", folder / "runs" / "second-lost"
    file = script(folder, "deepspeed", "second-lost")
    process = begun(hosts[0], file, log=log, more={"ATTEMPTS": "9"})
    try:
        waited(lambda: iterations(run) >= 1, "the first iteration")
        hosts[1].lose()
        noticed = waited(lambda: "LostRankError" in log.read_text(), "a message")
        waited(lambda: "does not answer over ssh" in log.read_text(), "the check of hosts")
        hosts[1].boot()
        code = process.wait(timeout=400)
    finally:
        process.kill()
    lines = log.read_text().splitlines()
    check = next(line for line in lines if "does not answer over ssh" in line)
    return {**_told(lines, noticed, run), "check": check, "code": code}


def without_first(folder: Path, hosts: list[Host]) -> dict[str, object]:
    """Lose the first host, where all meet, and start its script of torchrun again."""
    texts, run = [folder / f"first-{host.number}.txt" for host in hosts], folder / "runs/first-lost"
    file = script(folder, "torchrun", "first-lost")

    def start(number: int) -> subprocess.Popen[str]:
        words, more = (str(number), NAMES[0]), {"ATTEMPTS": "9"}
        return begun(hosts[number], file, *words, log=texts[number], more=more)

    first, second = start(0), start(1)
    try:
        waited(lambda: iterations(run) >= 1, "the first iteration")
        hosts[0].lose()
        noticed = waited(lambda: "LostRankError" in texts[1].read_text(), "a message")
        hosts[0].boot()
        again = start(0)
        codes = [again.wait(timeout=400), second.wait(timeout=400)]
    finally:
        first.kill()
        second.kill()
    return {**_told(texts[1].read_text().splitlines(), noticed, run), "code": max(codes)}


def _told(lines: list[str], noticed: float, run: Path) -> dict[str, object]:
    return {
        "noticed_after_s": round(noticed, 1),
        "messages": [line for line in lines if "LostRankError" in line],
        "attempts": len([*(run / "logs").glob("attempt_*")]),
    }


def main(folder: Path) -> dict[str, object]:
    """Show all of it; return the figures."""
    folder = folder.resolve()
    remove()
    hosts = build(folder)
    try:
        figures: dict[str, object] = {"timeout_s": TIMEOUT, "iterations": ITERATIONS}
        figures["deepspeed_s"] = round(with_deepspeed(folder, hosts), 1)
        figures["torchrun_s"] = round(with_torchrun(folder, hosts), 1)
        figures["second_lost"] = without_second(folder, hosts)
        figures["first_lost"] = without_first(folder, hosts)
        runs = {run.name: run for run in sorted((folder / "runs").iterdir())}
        figures["status"] = {
            name: json.loads((run / "status.json").read_text())["status"]
            for name, run in runs.items()
        }
        figures["weights"] = {name: weights(run) for name, run in runs.items()}
        return figures
    finally:
        remove()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
