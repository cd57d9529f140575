"""Every form of a hostfile that the launchers accept, and a line that names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.hostfile import (
    MAX_BYTES,
    MAX_SLOTS,
    Host,
    parse_hostfile,
    parse_hosts,
    read_hostfile,
    weights,
)
from horovod_yolo.process.environment import weights_of_hosts

TWO = (Host("host1", 4), Host("host2", 4))
REPO = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "text",
    [
        "host1:4\nhost2:4\n",  # horovodrun, MPICH
        "host1 slots=4\nhost2 slots=4",  # Open MPI, horovodrun
        "# two\n\nhost1 slots = 4 max_slots=8  # one\r\n\thost2\tslots=4 max-slots=4\r\n",
        "host1\nhost1\nhost1\nhost1\nhost2:3\nhost2\n",  # a line a slot, as PBS writes it
        "host1 slots=2\nhost2 slots=4\nhost1 slots=2\n",
    ],
)
def test_all_forms_mean_the_same(text: str) -> None:
    assert parse_hostfile(text) == TWO


def test_weights_are_of_hosts_and_told_to_ranks() -> None:
    hosts = parse_hostfile("host1 slots=2 weight=0.5\nhost2:2 weight = 12\nhost1 slots=1\nhost3\n")
    assert [host.weight for host in hosts] == [0.5, 12, None]
    told = weights(hosts)
    assert told == {"HOROVOD_YOLO_WEIGHTS": "host1=0.5,host2=12,host3=1"}
    assert weights_of_hosts(told) == {"host1": 0.5, "host2": 12, "host3": 1}
    assert weights(TWO) == {} == weights_of_hosts({})
    with pytest.raises(UserError, match="hostfile:2: host1 has two weights"):
        parse_hostfile("host1 weight=1\nhost1 weight=2")
    with pytest.raises(UserError, match="'x' of 'host1' is no weight above 0"):
        weights_of_hosts({"HOROVOD_YOLO_WEIGHTS": "host1=x"})


@pytest.mark.parametrize("text", ["host1:4,host2:4", " host1:4 , host2 slots=4 ", "host1:4,host2:1,host2:3"])
def test_lists_of_the_command_line(text: str) -> None:
    assert parse_hosts(text) == TWO


def test_names_and_addresses() -> None:
    names = ["localhost", "10.0.0.1", "node-01.cluster.example", "gpu_7"]
    assert [host.name for host in parse_hosts(",".join(names))] == names
    assert {host.slots for host in parse_hosts(",".join(names))} == {1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("host1:four", "'four' is no number of slots from 1 to 1024"),
        ("host1:", "'' is no number of slots"),
        ("host1:0", "'0' is no number"),
        ("host1:-1", "'-1' is no number"),
        pytest.param("host1:" + "9" * 5000, "is no number", id="huge"),
        ("host1:٤", "is no number"),
        ("host1 slots=4 slots=4", "slots is given twice"),
        ("host1:4 slots=4", "host1 has its slots twice"),
        ("host1 slots=4 max_slots=2", "host1 has more slots (4) than max_slots (2)"),
        ("host1 slot=4", "'slot=4' is not understood after a host. known: slots=N, max_slots=N, weight=N"),
        ("host1 weight=0", "'weight=0' is not one weight above 0"),
        ("host1 weight=fast", "'weight=fast' is not one weight above 0"),
        ("host1 weight=1 weight=2", "'weight=1 weight=2' is not one weight above 0"),
        ("host1 4", "'4' is not understood"),
        ("host1 slots", "'slots' is not understood"),
        ("-oProxyCommand=id", "is no host name"),
        ("--help", "'--help' is no host name"),
        ("host1;reboot", "is no host name"),
        ("$(id):4", "is no host name"),
        ("me@host1:4", "user names belong into ~/.ssh/config"),
        ("node[01-04]:4", "`scontrol show hostnames` spells"),
        ("fe80::1", "looks like an IPv6 address"),
        ("[fe80::1]:4", "looks like an IPv6 address"),
        ("hôst:4", "'h\\xf4st' is no host name"),
        pytest.param("h" * 300, "is no host name", id="long"),
        (":4", "'' is no host name"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(f"# mine\nhost0 slots=1\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_hostfile(file)
    assert str(raised.value).startswith(f"{file}:3: ") and message in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(file))


@pytest.mark.parametrize(
    ("text", "message"), [("", "missing"), ("h1:4,,h2:4", "missing"), ("h1:4,", "missing")]
)
def test_lists_with_holes(text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--hosts: .*{message}"):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no host"),
        (b"# nothing\n\n", "names no host"),
        (b"host1\xff\n", "not a text file in UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not a text file"),
        pytest.param(b"#" * (MAX_BYTES + 1), "larger than 1 MB", id="large"),
    ],
)
def test_files_that_are_no_hostfiles(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_hostfile(file)
    assert str(raised.value).startswith(f"{file}: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file"):
        read_hostfile(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        read_hostfile(tmp_path)


@given(st.text() | st.text(alphabet="h1:,=slotmax_ \n#[].-@"))
def test_any_text_is_hosts_or_the_users_mistake(text: str) -> None:
    for parse in (parse_hostfile, parse_hosts):
        try:
            hosts = parse(text)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert hosts and len({host.name for host in hosts}) == len(hosts)
            assert all(host.slots >= 1 and not host.name.startswith("-") for host in hosts)


host_names = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)


@given(st.dictionaries(host_names, st.integers(1, MAX_SLOTS), min_size=1, max_size=6))
def test_what_is_written_is_read(slots: dict[str, int]) -> None:
    hosts = tuple(Host(name, count) for name, count in slots.items())
    assert parse_hosts(",".join(map(str, hosts))) == hosts
    assert parse_hostfile("".join(f"{host.name} slots={host.slots}\n" for host in hosts)) == hosts


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("localhost", [2]),
        ("two_nodes.example", [4, 4]),
        ("four_nodes.example", [4, 4, 4, 4]),
        ("mixed_gpus.example", [8, 4, 4, 2]),
    ],
)
def test_the_examples_that_are_shipped(name: str, slots: list[int]) -> None:
    assert [host.slots for host in read_hostfile(REPO / "hostfiles" / name)] == slots
