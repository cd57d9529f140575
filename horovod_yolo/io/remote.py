"""Files of object stores and web servers, read by ranges; by fsspec, which is an extra.

A folder there is a `Path` like any other, of the URL as `pathlib` writes it: ``s3:/bucket/pack``. What is
said of a file shows its URL, and of what the libraries say no more than cannot hold a credential.
"""

from __future__ import annotations

import errno
import importlib
import logging
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line

NEEDS = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp", "http": "aiohttp"}
SECONDS = 60.0  # for a read with all its tries
SECONDS_WHILE_GONE = 2.0  # for one soon after that: a hundred in a row, and a data set counts as gone
PAUSES = (0.5, 2.0)  # before another try
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_COLLAPSED = re.compile(rf"({'|'.join(NEEDS)}):/(?=[^/])")
_SECRETS = re.compile(r"\?\S*|//[^/@\s]*@|[A-Za-z0-9+/_=-]{32,}")  # queries, accounts, keys and tokens
_LOUD = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "s3fs", "urllib3")
_REFUSALS = (401, 403)

_gone: dict[str, float] = {}  # folders whose last read has failed after all tries, and when


def is_url(text: str) -> bool:
    """Whether a text is meant as the URL of something elsewhere."""
    return _URL.match(text) is not None


def remote_path(url: str) -> Path:
    """The folder that a URL names.

    Raises:
        ValueError: it is none that can be read, or says more than where the folder is.
    """
    parts: SplitResult = urlsplit(url)
    if parts.scheme not in NEEDS:
        raise ValueError(f"{parts.scheme}:// is not read: it must be {', '.join(NEEDS)}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("it has an account, a query or a fragment: credentials belong in the environment")
    if not parts.netloc or ".." in parts.path.split("/"):
        raise ValueError("it must be a host or bucket and a folder")
    return Path(url)


def url_of(path: Path) -> str | None:
    """Of a file or folder that is remote; None of any other."""
    text = str(path)
    return _COLLAPSED.sub(r"\1://", text, count=1) if _COLLAPSED.match(text) else None


def shown(path: Path) -> str:
    """A path for people."""
    return url_of(path) or str(path)


@dataclass(frozen=True)
class RemoteFolder:
    """Picklable; each process has connections of its own."""

    url: str

    @classmethod
    def at(cls, path: Path) -> RemoteFolder | None:
        """The folder of that path; None where it is on a file system."""
        url = url_of(path)
        return cls(url) if url else None

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer where it ends among them.

        Raises:
            OSError: it is missing, or the server does not give it.
            UserError: what reads such URLs is not installed.
        """
        content: bytes = self._ask(name, "_cat_file", start=offset, end=offset + length)
        if len(content) > length:
            raise OSError("the server gives whole files only, not ranges of them")
        return content

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError, UserError: as `read`.
        """
        size = self._ask(name, "_info").get("size")
        if size is None:
            raise OSError("the server does not say how long the file is")
        return int(size)

    def _ask(self, name: str, call: str, **arguments: Any) -> Any:
        """What the file system's own coroutine gives, within `SECONDS`."""
        was_gone = time.monotonic() - _gone.get(self.url, -SECONDS) < SECONDS
        deadline = time.monotonic() + (SECONDS_WHILE_GONE if was_gone else SECONDS)
        for pause in (*PAUSES, None):
            try:
                found = _called(f"{self.url}/{name}", call, deadline - time.monotonic(), arguments)
            except UserError:
                raise
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "No such file", f"{self.url}/{name}") from None
            except Exception as error:  # noqa: BLE001  # whatever the libraries of three services raise
                last = pause is None or was_gone or _is_refused(error)
                if last or time.monotonic() + pause > deadline:  # type: ignore[operator]  # then it is no None
                    if not was_gone:
                        _gone[self.url] = time.monotonic()
                    raise OSError(_said(error)) from None
                time.sleep(pause)  # type: ignore[arg-type]
            else:
                _gone.pop(self.url, None)
                return found
        raise AssertionError("the last try returns or raises")


def _called(url: str, call: str, seconds: float, arguments: dict[str, Any]) -> Any:
    system = _system(urlsplit(url).scheme)
    coroutine = getattr(system, call)
    return _sync()(system.loop, coroutine, system._strip_protocol(url), timeout=seconds, **arguments)


def _sync() -> Any:
    return importlib.import_module("fsspec.asyn").sync


@lru_cache
def _system(scheme: str) -> Any:
    """The file system of fsspec, which finds credentials and settings where its users have them.

    Raises:
        UserError: it is not installed.
    """
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(NEEDS[scheme])
        for name in _LOUD:  # they may show requests, with what is signed in them
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        return fsspec.filesystem(scheme)
    except ImportError as error:
        what = f"{scheme}:// needs {NEEDS[scheme]}, which cannot be imported ({error.name or error})"
        raise UserError(what, fix="pip install 'horovod_yolo[cloud]'") from None


def _is_refused(error: Exception) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", None) in _REFUSALS


def _said(error: Exception) -> str:
    """What went wrong, in a line."""
    status = getattr(error, "status", None)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    if _is_refused(error):
        return "access is refused: does this job have credentials for it?"
    if isinstance(status, int):
        return f"the server answers {status}"
    text = _SECRETS.sub("...", one_line(str(error).partition("\n")[0]))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
