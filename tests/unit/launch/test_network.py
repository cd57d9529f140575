"""The way to the other hosts, with the resolver, ssh and this host's cards in the test's hand."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import network
from horovod_yolo.launch.hostfile import Host, parse_hosts

ADDRESSES = {"host1": "10.0.0.1", "host1.lan": "10.0.0.1", "host2": "10.0.0.2", "far": "10.9.9.9"}
CARDS = {"lo": "127.0.0.1", "eth7": "10.0.0.1", "ib0": "10.9.0.1"}


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """This is host1, without an ssh."""
    addresses = dict(ADDRESSES)

    def resolve(name: str) -> str:
        if name.replace(".", "").isdigit():
            return name
        if name not in addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return addresses[name]

    network.ssh_target.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "host1")
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    entry = psutil._common.snicaddr if hasattr(psutil._common, "snicaddr") else psutil._ntuples.snicaddr
    cards = {
        name: [
            entry(socket.AF_INET, address, None, None, None),
            entry(socket.AF_INET6, "::1", None, None, None),
        ]
        for name, address in CARDS.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    return addresses


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards by which addresses are reached: far ones over InfiniBand, unknown ones not at all."""
    found = {"10.0.0.2": "eth7", "10.9.9.9": "ib0", "10.0.0.1": "lo", "10.0.0.3": "lo"}
    monkeypatch.setattr(network, "route_interface", found.get)


def ssh_says(folder: Path, **hosts: str) -> None:
    """An ssh whose configuration names hosts: `name="address port"`."""
    cases = "".join(
        f"{name}) echo hostname {target.split()[0]}; echo port {target.split()[1]};; "
        for name, target in hosts.items()
    )
    tool = folder / "ssh"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = -G ] || exit 9\ncase $2 in {cases} *) echo hostname $2; echo port 22;; esac\n'
    )
    tool.chmod(0o755)


def test_a_good_name() -> None:
    network.check_own_name(parse_hosts("host1:2,host2:2"))


@pytest.mark.parametrize(
    "hosts", ["host1:2,host2:2", "localhost:1,host2:1", "host1.lan,host2", "10.0.0.1,host2"]
)
def test_a_name_that_leads_nobody_here(resolver: dict[str, str], hosts: str) -> None:
    resolver["host1"] = "127.0.1.1"
    with pytest.raises(UserError, match=r"own name 'host1' is 127\.0\.1\.1, where no other host reaches it"):
        network.check_own_name(parse_hosts(hosts))
    network.check_own_name(parse_hosts(hosts), bound=True)
    del resolver["host1"]
    with pytest.raises(UserError, match=r"own name 'host1' has no address\. add a line"):
        network.check_own_name(parse_hosts(hosts), bound=True)


@pytest.mark.parametrize("hosts", ["localhost:4", "host1:4", "host2:4,far:4"])
def test_one_host_and_a_host_that_only_launches_need_no_name(resolver: dict[str, str], hosts: str) -> None:
    del resolver["host1"]
    network.check_own_name(parse_hosts(hosts))


@pytest.mark.usefixtures("routes")
@pytest.mark.parametrize(
    ("hosts", "interface"),
    [
        ("host1,host2,far", "eth7"),
        ("far,host1,host2", "ib0"),
        ("10.0.0.1,10.0.0.2", "eth7"),  # this host by its address
        ("host2:4", "eth7"),  # all ranks on one other host
        ("localhost:4", None),
        ("host1:4", None),
        ("localhost:1,host1:1", None),
        ("127.0.0.1:1,10.0.0.1:1", None),
    ],
)
def test_the_interface_is_that_of_the_route_to_the_first_other_host(
    hosts: str, interface: str | None
) -> None:
    assert network.find_interface(parse_hosts(hosts)) == (interface, "")
    assert network.find_interface(parse_hosts(hosts), needed=True) == (interface or "lo", "")


@pytest.mark.usefixtures("routes")
def test_an_alias_of_sshs_configuration_leads_to_an_interface(tmp_path: Path) -> None:
    ssh_says(tmp_path, trainbox="10.9.9.9 2222")
    assert network.find_interface(parse_hosts("host1,trainbox")) == ("ib0", "")


@pytest.mark.usefixtures("routes")
@pytest.mark.parametrize(
    ("other", "note"),
    [
        ("10.5.5.5", "no route to 10.5.5.5 (10.5.5.5) is known here"),
        ("10.0.0.3", "the way to 10.0.0.3 stays on this host"),
        ("unknown", "unknown has no address here"),
    ],
)
def test_no_interface_is_a_note(other: str, note: str) -> None:
    found, why = network.find_interface(parse_hosts(f"host1,{other}"))
    assert found is None and why.startswith(note) and why.endswith("--interface")


def test_the_kernel_tells_the_interface_of_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.route_interface("127.0.0.5") == "lo"
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: (_ for _ in ()).throw(OSError(101, "unreachable"))
    )
    assert network.route_interface("203.0.113.7") is None


def test_names_of_this_host() -> None:
    assert all(map(network.is_here, ["localhost", "127.0.0.1", "host1", "host1.lan", "10.0.0.1", "10.9.0.1"]))
    assert not any(map(network.is_here, ["host2", "host11", "host1.elsewhere", "10.0.0.2", "unknown"]))


def test_an_own_name_that_is_an_address_makes_no_other_host_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "10.0.0.1")
    assert network.is_here("10.0.0.1")
    assert not network.is_here("10.0.0.2") and not network.is_here("10.9.9.9")


def test_one_host_under_several_names_is_one(tmp_path: Path) -> None:
    hosts, notes = network.merged(parse_hosts("localhost:1,host2:2,127.0.0.1:1,10.0.0.2:1,far:4,host1.lan:3"))
    assert hosts == (Host("localhost", 5), Host("host2", 3), Host("far", 4))
    assert notes == [
        "localhost and 127.0.0.1 are one host: it gets 2 ranks, as localhost",
        "host2 and 10.0.0.2 are one host: it gets 3 ranks, as host2",
        "localhost and host1.lan are one host: it gets 5 ranks, as localhost",
    ]
    assert network.merged(parse_hosts("host1:4")) == ((Host("host1", 4),), [])


def test_two_ports_of_one_address_are_two_hosts(tmp_path: Path) -> None:
    """Containers behind one host's ports; an alias and its address are one."""
    ssh_says(tmp_path, box1="10.0.0.2 2221", box2="10.0.0.2 2222", alias="10.0.0.2 22")
    hosts, _ = network.merged(parse_hosts("box1:1,box2:1,alias:1,host2:1"))
    assert hosts == (Host("box1", 1), Host("box2", 1), Host("alias", 2))


def test_where_ssh_goes(tmp_path: Path) -> None:
    assert network.ssh_target("host2") == network.SshTarget("host2", 22)  # no ssh to ask
    network.ssh_target.cache_clear()
    ssh_says(tmp_path, trainbox="10.0.0.2 2222")
    os.environ["PATH"] += ":/bin"
    assert network.ssh_target("trainbox") == network.SshTarget("10.0.0.2", 2222)
    assert network.address_of("trainbox") == "10.0.0.2" and network.address_of("nobody") is None
