from __future__ import annotations

import pytest

from horovod_yolo.core.address import Address
from horovod_yolo.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("8080", Address("127.0.0.1", 8080), "http://127.0.0.1:8080/"),
        ("0", Address("127.0.0.1", 0), "http://127.0.0.1:0/"),
        ("0.0.0.0:80", Address("0.0.0.0", 80), "http://0.0.0.0:80/"),
        ("node-1.example:9", Address("node-1.example", 9), "http://node-1.example:9/"),
        ("[::1]:8080", Address("::1", 8080), "http://[::1]:8080/"),
    ],
)
def test_a_port_and_where(text: str, address: Address, url: str) -> None:
    assert Address.parse(text, "--dashboard") == address
    assert address.url == url


@pytest.mark.parametrize("text", ["", "x", ":80", "65536", "-1", "a b:80", "::1:80", "host:", "٣", "1:2:3"])
def test_what_is_no_port_is_said(text: str) -> None:
    with pytest.raises(UserError, match=r"--dashboard .* is no port\. give a port such as 8080"):
        Address.parse(text, "--dashboard")
