"""The way to the other hosts, with the resolver and `ip` in the test's hand."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import network
from horovod_yolo.launch.hostfile import parse_hosts

ADDRESSES = {"host1": "10.0.0.1", "host2": "10.0.0.2", "far": "10.9.9.9"}


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This is host1."""
    addresses = dict(ADDRESSES)

    def resolve(name: str) -> str:
        if name not in addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return addresses[name]

    monkeypatch.setattr(socket, "gethostname", lambda: "host1")
    monkeypatch.setattr(socket, "gethostbyname", resolve)
    return addresses


def fake_ip(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    tool = folder / "ip"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(tool))


def test_a_good_name() -> None:
    network.check_own_name(parse_hosts("host1:2,host2:2"))


@pytest.mark.parametrize(
    "hosts", ["host1:2,host2:2", "localhost:1,host2:1", "host1.lan,host2.lan", "10.0.0.1,host2"]
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


def test_the_interface_is_that_of_the_route_to_the_first_other_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ip(
        monkeypatch, tmp_path, f'echo "$*" > {tmp_path}/asked; echo "$4 via 10.0.0.254 dev eth7 src 10.0.0.1"'
    )
    assert network.find_interface(parse_hosts("host1,host2,far")) == ("eth7", "")
    assert (tmp_path / "asked").read_text() == "-o route get 10.0.0.2\n"


def test_this_host_by_its_address_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ip(
        monkeypatch,
        tmp_path,
        '[ $4 = 10.0.0.1 ] && echo "local $4 dev lo src $4" || echo "$4 dev eth7 src x"',
    )
    monkeypatch.setattr(socket, "gethostbyname", lambda name: ADDRESSES.get(name, name))
    assert network.find_interface(parse_hosts("10.0.0.1,10.0.0.2")) == ("eth7", "")


def test_one_host_has_no_interface_and_no_note() -> None:
    for hosts in ("localhost:4", "host1:4", "host2:4", "localhost:1,host1:1"):
        assert network.find_interface(parse_hosts(hosts)) == (None, "")


def test_an_elastic_job_has_an_interface_with_one_host_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ip(monkeypatch, tmp_path, 'echo "$4 dev eth7 src 10.0.0.1"')
    for hosts in ("localhost:4", "host1:4", "localhost:1,host1:1"):
        assert network.find_interface(parse_hosts(hosts), needed=True) == ("lo", "")
    for hosts in ("host2:4", "host1,host2"):
        assert network.find_interface(parse_hosts(hosts), needed=True) == ("eth7", "")


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo Network is unreachable >&2; exit 2", "no route to host2 (10.0.0.2) is known here"),
        ("echo local 10.0.0.2 dev lo src 10.0.0.2", "the way to host2 stays on this host"),
        ("echo nothing", "`ip route get 10.0.0.2` names no interface"),
    ],
)
def test_no_interface_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, note: str
) -> None:
    fake_ip(monkeypatch, tmp_path, script)
    found, why = network.find_interface(parse_hosts("host1,host2"))
    assert found is None and why.startswith(note) and why.endswith("--interface")


def test_without_an_address_or_iproute_there_is_a_note(
    resolver: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, why = network.find_interface(parse_hosts("host1,unknown"))
    assert found is None and ("unknown has no address here" in why or "no `ip` command" in why)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert network.find_interface(parse_hosts("host1,host2"))[1].startswith("no `ip` command (iproute2)")


def test_names_of_this_host() -> None:
    assert all(map(network.is_here, ["localhost", "127.0.0.1", "host1", "host1.cluster.lan"]))
    assert not any(map(network.is_here, ["host2", "host11", "10.0.0.1"]))
