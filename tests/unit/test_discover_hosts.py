"""launch/discover_hosts.sh with real sockets: every address 127.0.0.x stands for a host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from horovod_yolo.launch.hostfile import parse_hostfile

SCRIPT = Path(__file__).resolve().parents[2] / "launch/discover_hosts.sh"
LIST = "127.0.0.2:4,127.0.0.3:2"
BOTH, FIRST, SECOND = "127.0.0.2:4\n127.0.0.3:2\n", "127.0.0.2:4\n", "127.0.0.3:2\n"


class Network:
    """Hosts that listen on one port, and calls of the script that look for them."""

    def __init__(self, folder: Path, open_sockets: ExitStack) -> None:
        self.runtime = folder / "runtime"
        self.runtime.mkdir()
        self._folder = folder
        self._open = open_sockets
        self._listening: dict[str, socket.socket] = {}
        self.port = 0
        self.said = ""  # by the last call of `found`, on stderr

    def up(self, address: str, backlog: int = 50) -> None:
        server = self._open.enter_context(socket.socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, self.port))
        server.listen(backlog)
        self.port = server.getsockname()[1]
        self._listening[address] = server

    def down(self, address: str) -> None:
        self._listening.pop(address).close()

    def black_hole(self, address: str) -> None:
        """What is sent there stays without an answer: the queue of connections is full and stays so."""
        self.up(address, backlog=0)
        for _ in range(2):
            client = self._open.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((address, self.port))

    def call(self, **variables: str) -> subprocess.CompletedProcess[str]:
        own = {
            "PATH": f"{self._folder}/bin:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "SSH_PORT": str(self.port or 1),
            "PROBE_EVERY": "0",
        }
        return subprocess.run(
            [str(SCRIPT)],
            cwd=self._folder,
            env={**own, **variables},
            capture_output=True,
            text=True,
            timeout=30,
        )

    def found(self, hosts: str = LIST, **variables: str) -> str:
        done = self.call(HOSTS=hosts, **variables)
        assert done.returncode == 0 and "line" not in done.stderr
        self.said = done.stderr
        return done.stdout


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with ExitStack() as open_sockets:
        yield Network(tmp_path, open_sockets)


@pytest.fixture
def two(network: Network) -> Network:
    """Two hosts that answer."""
    network.up("127.0.0.2")
    network.up("127.0.0.3")
    return network


def test_a_host_leaves_after_two_failures_and_is_back_with_one_answer(two: Network) -> None:
    assert two.found() == BOTH
    two.down("127.0.0.3")
    assert [two.found() for _ in range(3)] == [BOTH, FIRST, FIRST]
    two.up("127.0.0.3")
    assert two.found() == BOTH
    two.down("127.0.0.3")
    assert [two.found() for _ in range(2)] == [BOTH, FIRST]  # counted from the start again


def test_one_failure_between_answers_is_forgiven_each_time(two: Network) -> None:
    for _ in range(3):
        assert two.found() == BOTH
        two.down("127.0.0.2")
        assert two.found() == BOTH
        two.up("127.0.0.2")


def test_the_number_of_failures_is_the_users(two: Network) -> None:
    two.found()
    two.down("127.0.0.2")
    assert [two.found(PROBE_FAILURES="3") for _ in range(3)] == [BOTH, BOTH, SECOND]


def test_a_host_that_never_answered_comes_in_with_its_first_answer(network: Network) -> None:
    network.up("127.0.0.2")
    assert network.found() == FIRST
    network.up("127.0.0.3")
    assert network.found() == BOTH


def test_silent_hosts_are_asked_all_at_once_and_not_for_long(network: Network) -> None:
    network.up("127.0.0.2")
    silent = [f"127.0.0.{i}" for i in range(10, 16)]
    for address in silent:
        network.black_hole(address)
    hosts = ",".join(["127.0.0.2", *silent])
    start = time.monotonic()
    assert network.found(hosts) == "127.0.0.2:1\n"
    assert 1.9 < time.monotonic() - start < 3  # the bound of the issue: horovodrun asks each second


def test_an_answer_holds_for_a_while(two: Network) -> None:
    assert two.found(PROBE_EVERY="60") == BOTH
    two.down("127.0.0.3")
    assert [two.found(PROBE_EVERY="60") for _ in range(3)] == [BOTH] * 3  # not asked again
    assert [two.found() for _ in range(2)] == [BOTH, FIRST]


def aged(line: str, seconds: int) -> str:
    """A line of the state, as if it was from earlier."""
    name, failures, asked, *way = line.split()
    return " ".join([name, failures, str(int(asked) - seconds), *way]) + "\n"


@pytest.mark.parametrize("seconds", [100, -100])
def test_a_clock_that_was_set_back_keeps_no_answer_alive(two: Network, seconds: int) -> None:
    """The state is dated by the time since the machine started."""
    two.found()
    two.down("127.0.0.3")
    (state,) = two.runtime.iterdir()
    now = float(Path("/proc/uptime").read_text().split()[0])
    assert all(abs(int(line.split()[2]) - now) < 60 for line in state.read_text().splitlines())
    state.write_text("".join(aged(line, seconds) for line in state.read_text().splitlines()))
    assert two.found(PROBE_EVERY="60") == FIRST


def test_what_was_found_long_ago_does_not_count(two: Network) -> None:
    two.found()
    two.down("127.0.0.3")
    (state,) = two.runtime.iterdir()
    state.write_text("".join(aged(line, 100) for line in state.read_text().splitlines()))
    assert two.found(PROBE_EVERY="60") == FIRST


def test_jobs_with_other_hosts_do_not_disturb_each_other(two: Network) -> None:
    (two.runtime.parent / "a").write_text("127.0.0.2\n")
    (two.runtime.parent / "b").write_text("127.0.0.3\n")
    for _ in range(2):
        assert two.call(HOSTFILE="a").stdout == "127.0.0.2:1\n"
        assert two.call(HOSTFILE="b").stdout == "127.0.0.3:1\n"
        assert two.found("127.0.0.2") == "127.0.0.2:1\n"
        assert two.found("127.0.0.3") == "127.0.0.3:1\n"
    assert len(list(two.runtime.iterdir())) == 4


def test_this_host_is_not_asked(network: Network) -> None:
    for here in ("localhost", "127.0.0.1", socket.gethostname()):
        assert network.found(f"{here}:2") == f"{here}:2\n"


def test_one_host_under_two_names_is_one(two: Network) -> None:
    here = socket.gethostname()
    assert two.found(f"localhost:2,127.0.0.1:1,127.0.0.2:4,{here}:3") == "localhost:6\n127.0.0.2:4\n"


def test_an_own_name_that_is_an_address_makes_no_other_host_this_one(two: Network) -> None:
    """Names were compared up to the first dot: of a machine called 127.7.7.7 all others were ranks' homes."""
    assert two.found(HOSTNAME="127.7.7.7") == BOTH
    two.down("127.0.0.3")
    assert [two.found(HOSTNAME="127.7.7.7") for _ in range(2)] == [BOTH, FIRST]


def test_what_does_not_answer_is_named_with_its_port_once(two: Network) -> None:
    assert two.found() == BOTH and two.said == ""
    two.down("127.0.0.3")
    assert two.found() == BOTH and two.said == ""
    assert two.found() == FIRST
    at = f"127.0.0.3 port {two.port}"
    assert two.said == f"discover_hosts: 127.0.0.3 does not answer ssh at {at}; left out until it does\n"
    assert two.found() == FIRST and two.said == ""
    two.up("127.0.0.3")
    assert two.found() == BOTH and two.said == f"discover_hosts: 127.0.0.3 ({at}) answers again\n"


def ssh_says(folder: Path, script: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    tool = folder / "bin/ssh"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_address_and_port_are_those_of_sshs_configuration(two: Network, tmp_path: Path) -> None:
    """An alias with a HostName and a Port; asked once, and again where the host does not answer."""
    case = (
        f"trainbox) echo hostname 127.0.0.2; echo port {two.port};; *) echo hostname $2; echo port 1;; esac"
    )
    ssh_says(tmp_path, f'[ "$1" = -G ] || exit 9; echo $2 >> asked; case $2 in {case}')
    for _ in range(2):
        assert two.found("trainbox:4,127.0.0.3:2", SSH_PORT="") == "trainbox:4\n"
    assert sorted((tmp_path / "asked").read_text().split()) == ["127.0.0.3", "127.0.0.3", "trainbox"]
    assert (
        two.found("trainbox:4,127.0.0.2:1") == "trainbox:5\n"
    )  # SSH_PORT wins; the alias and its address are one


def test_a_host_behind_another_is_asked_through_ssh(two: Network, tmp_path: Path) -> None:
    jump = "echo hostname 10.255.255.1; echo port 22; echo proxyjump gate"
    ssh_says(tmp_path, f'if [ "$1" = -G ]; then {jump}; else [ -e up ] && [ "$5" = exit ]; fi')
    assert two.found("inner:4") == "" and "inner does not answer ssh at 10.255.255.1 port" in two.said
    assert "ProxyJump" in two.said
    (tmp_path / "up").touch()
    assert two.found("inner:4") == "inner:4\n"


def test_without_a_runtime_folder_the_state_is_in_the_cache(two: Network, tmp_path: Path) -> None:
    """Nobody else can take a name there first, as in /tmp."""
    assert two.found(XDG_RUNTIME_DIR="", XDG_CACHE_HOME=str(tmp_path / "cache")) == BOTH
    (tmp_path / "home").mkdir()
    assert two.found(XDG_RUNTIME_DIR="", HOME=str(tmp_path / "home")) == BOTH
    for folder in (tmp_path / "cache/horovod_yolo", tmp_path / "home/.cache/horovod_yolo"):
        (state,) = folder.iterdir()
        assert state.name.startswith("horovod_yolo-hosts-") and state.stat().st_mode & 0o077 == 0


def test_a_hostfile_is_read_anew_each_time(two: Network, tmp_path: Path) -> None:
    hostfile = tmp_path / "my hosts"
    hostfile.write_text("127.0.0.2 slots=4\n")
    assert two.call(HOSTFILE=str(hostfile), HOSTS="127.0.0.3").stdout == FIRST
    hostfile.write_text("127.0.0.2 slots=4\n127.0.0.3:2\n")
    assert two.call(HOSTFILE=str(hostfile)).stdout == BOTH


@pytest.mark.parametrize(
    "text",
    [
        "localhost\n",
        "localhost weight=0.5\nlocalhost slots=3 weight = 0.5 # half",
        " localhost  slots = 4 max_slots=8 # eight\r\n\n# none\n",
        "localhost max-slots=8 slots=04",
        "localhost:3\nlocalhost\nlocalhost slots=2\nlocalhost:2",
    ],
)
def test_the_forms_are_those_of_the_launcher(network: Network, tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_bytes(text.encode())
    done = network.call(HOSTFILE=str(tmp_path / "hosts"))
    assert done.stdout.splitlines() == [str(host) for host in parse_hostfile(text)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("$(touch pwned)", "hosts:2: no host"),
        ("-oProxyCommand=x", "hosts:2: no host"),
        ("host1 slots=a[$(touch pwned)]", "hosts:2: no host"),
        ("user@host1", "hosts:2: no host"),
        ("host1:4 slot=4", "hosts:2: no host"),
        ("host1 slots=0", "hosts:2: host1 has no slots"),
    ],
)
def test_a_line_that_is_no_host_is_named_and_nothing_of_it_is_run(
    network: Network, tmp_path: Path, line: str, why: str
) -> None:
    (tmp_path / "hosts").write_text(f"localhost\n{line}\n")
    done = network.call(HOSTFILE="hosts")
    assert (done.returncode, done.stdout) == (2, "") and why in done.stderr
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, "Set HOSTFILE to a file, or HOSTS to a list"),
        ({"HOSTFILE": "absent"}, "absent cannot be read"),
        ({"HOSTS": "localhost", "SSH_PORT": "x[$(touch pwned)]"}, "are whole numbers"),
        ({"HOSTS": "localhost", "PROBE_SECONDS": "0"}, "are whole numbers"),
    ],
)
def test_mistakes(network: Network, tmp_path: Path, variables: dict[str, str], why: str) -> None:
    done = network.call(**variables)
    assert (done.returncode, done.stdout) == (2, "") and why in done.stderr
    assert not (tmp_path / "pwned").exists()


def test_a_link_in_place_of_the_folder_is_not_followed(two: Network, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    found = two.found(XDG_RUNTIME_DIR=str(tmp_path / "link"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert found == BOTH
    assert not list((tmp_path / "elsewhere").iterdir()) and list((tmp_path / "cache/horovod_yolo").iterdir())


def test_in_tmp_the_name_of_the_folder_is_no_name_that_others_can_take(two: Network, tmp_path: Path) -> None:
    """Without a home, as in a container; a second call finds what the first one made."""
    as_if = {"XDG_RUNTIME_DIR": "", "PROBE_EVERY": "30"}
    before = set(Path("/tmp").glob("horovod_yolo-hosts-*"))
    try:
        assert two.found(**as_if) == BOTH
        (made,) = set(Path("/tmp").glob("horovod_yolo-hosts-*")) - before or before
        assert made.stat().st_mode & 0o777 == 0o700
        two.down("127.0.0.3")
        assert two.found(**as_if) == BOTH  # not asked again
    finally:
        for folder in set(Path("/tmp").glob("horovod_yolo-hosts-*")) - before:
            shutil.rmtree(folder)


def test_under_slurm_the_hosts_are_those_of_the_job(two: Network, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames 127.0.0.[2-4]" ] && printf "127.0.0.%s\\n" 2 3 4\n'
    )
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "127.0.0.[2-4]", "SLURM_TASKS_PER_NODE": "4(x2),3"}
    several = two.call(**slurm, SLURM_HET_SIZE="2")
    assert several.stdout == "127.0.0.2:4\n127.0.0.3:4\n"
    assert "of this heterogeneous Slurm job only the first component is used: 127.0.0.[2-4]" in several.stderr
    assert "heterogeneous" not in two.call(**slurm, SLURM_HET_SIZE="2").stderr  # asked each second
    two.up("127.0.0.4")
    assert two.call(**slurm).stdout == "127.0.0.2:4\n127.0.0.3:4\n127.0.0.4:3\n"
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    assert two.call(**slurm).returncode == 2


def test_the_script_is_clean() -> None:
    tool = shutil.which("shellcheck")
    if tool is None:
        pytest.skip("LOUD SKIP: no shellcheck: `make setup` installs it")
    done = subprocess.run([tool, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
