"""YAML, data files, hyperparameters and hostfiles from strangers: a value or a `UserError` of one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from horovod_yolo.config.load import load_hyp
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.io.plain_yaml import read_mapping
from horovod_yolo.launch.hostfile import Host, parse_hostfile, parse_hosts, read_hostfile
from tests.fuzz.mutations import fuzzed, mutated

YAML = [
    b"path: .\ntrain: images/train\nval: [images/val, b.txt]\nnc: 2\nnames: {0: cat, 1: dog}\n",
    b"lr0: 0.01\nmomentum: 0.937\nhsv_h: 1.5e-2\nmosaic: 1\n",
    b"names:\n  - a\n  - 'b'\ntrain: &x images\nval: *x\n",
]
TOKENS = [
    b"!!int ",
    b'!!int ""',
    b"!!float ",
    b"!!bool x",
    b"!!timestamp x",
    b"!!binary x",
    b"!!set ",
    b"!!omap ",
    b"!!python/object/apply:os.system [id]",
    b"&a ",
    b"*a",
    b"<<: ",
    b"? ",
    b"- ",
    b"[",
    b"{",
    b"|\n ",
    b">\n ",
    b"%YAML 9.9\n",
    b"---\n",
    b"...",
    b"\t",
    b"\0",
    b"\xff",
    b'"\\UFFFFFFFF"',
    b'"\\ud800"',
    b"2001-99-99",
    b"9" * 400,
    b"1:60:99",
    b".inf",
    b".nan",
    b"~",
    b"names: ",
    b"train: ",
    b"lr0: ",
    b"0x",
    b"=",
]


def value_or_user_error(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return None


@fuzzed
@given(mutated(YAML, TOKENS))
@example(b'a: !!int ""')
@example(b'a: !!float ""')
@example(b"a: !!bool x")
@example(b"a: !!timestamp x")
@example(b'a: "\\UFFFFFFFF"')
@example(b"[" * 50_000)
@example(b"a: &x [1,2]\nb: [*x,*x]")
def test_yaml(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(data)
    mapping = value_or_user_error(lambda: read_mapping(file, most_bytes=1 << 20, what="a data file"))
    assert mapping is None or isinstance(mapping, dict)
    value_or_user_error(lambda: load_data_yaml(file))
    value_or_user_error(lambda: load_hyp(str(file)))


HOSTFILES = [b"host1 slots=4\nhost2:2 # two\n\n10.0.0.7 slots=1 max_slots=8\n", b"host1:4,host2:4"]
HOST_TOKENS = [
    b"slots=",
    b"max-slots=",
    b":",
    b",",
    b"[1-4]",
    b"::1",
    b"-oProxyCommand=x",
    b"@",
    b"\0",
    b"\xff",
    b"9" * 30,
    "\u0661".encode(),
    b"\x1b[31m",
    b"#",
    b" = ",
]


def check_hosts(hosts: tuple[Host, ...] | None) -> None:
    for host in hosts or ():
        assert host.name.isascii() and not host.name.startswith(("-", ".")) and " " not in host.name
        assert host.slots >= 1
    assert hosts is None or len({host.name for host in hosts}) == len(hosts)


@fuzzed
@given(mutated(HOSTFILES, HOST_TOKENS))
def test_hostfiles(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "hostfile"
    file.write_bytes(data)
    check_hosts(value_or_user_error(lambda: read_hostfile(file)))
    text = data.decode(errors="replace")
    check_hosts(value_or_user_error(lambda: parse_hosts(text)))


@fuzzed
@given(st.text(max_size=60))
def test_hosts_of_any_text(text: str) -> None:
    for parse in (parse_hosts, parse_hostfile):
        check_hosts(value_or_user_error(lambda parse=parse: parse(text)))  # type: ignore[misc]
