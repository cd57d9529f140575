"""Where something listens: a port, and of which of the host's addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from horovod_yolo.core.errors import UserError

LOOPBACK = "127.0.0.1"
_LOOPBACKS = (LOOPBACK, "localhost", "::1")
_ALL_ADDRESSES = ("0.0.0.0", "::")
_ADDRESS = re.compile(r"(?:(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+)):)?(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A host's name or address, and a port; port 0 is any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Address:
        """From ``8080``, which is on loopback, ``host:8080`` or ``[::1]:8080``; ``flag`` is where it stands.

        Raises:
            UserError: it is none of these.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found[3]) > 65535:
            fix = "give a port such as 8080, 0 for any free one, or an address and a port: 0.0.0.0:8080"
            raise UserError(f"{flag} {text!r:.60} is no port", fix=fix)
        return cls(found[1] or found[2] or LOOPBACK, int(found[3]))

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from its own host alone."""
        return self.host in _LOOPBACKS

    @property
    def is_all_addresses(self) -> bool:
        """Whether it stands for each address of the host, and is none."""
        return self.host in _ALL_ADDRESSES

    @property
    def url(self) -> str:
        """For a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"
