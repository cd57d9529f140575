"""Where a user's own files can lie: on a disk of this host, in folders that nobody else can write to."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from horovod_yolo.io.private import own_folder

# Of Linux. Whatever else there is, networks and FUSE above all, may change or cut a file behind our back.
_LOCAL = frozenset(
    (
        *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay"),
        *("ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs"),
    )
)
_MOUNTS = Path("/proc/self/mountinfo")
_SCRATCH = Path("/var/tmp")  # survives a boot, and is a disk of this host on most clusters


def cache_home() -> Path | None:
    """``$XDG_CACHE_HOME``, by default ``~/.cache``; None for an account without a home."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if Path(stated).is_absolute():  # the XDG rule: a relative one is to be ignored
        return Path(stated)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # containers run as users without an account
        return None


def local_cache(name: str) -> Path | None:
    """A folder of this user's on a disk of this host; None where there is none.

    It is below the cache home where that is local. Where homes are on a network, it is in /var/tmp, under a
    name that others cannot guess, and take first: a word kept in the cache home is part of it.
    """
    home = cache_home()
    if home is None:
        return None
    if is_local(home):
        return private_folder(home / "horovod_yolo" / name)
    word = _secret_word(home / "horovod_yolo")
    if word is None or not is_local(_SCRATCH):
        return None
    return private_folder(_SCRATCH / f"horovod_yolo-{word}", name)


def private_folder(folder: Path, *below: str) -> Path | None:
    """Make a folder that only this user may enter, and one below it; None where that cannot be done."""
    try:
        own_folder(folder.parent)
        for path in (folder, folder.joinpath(*below)):
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                return None
            if stat.S_IMODE(status.st_mode) != 0o700:
                path.chmod(0o700)
    except OSError:
        return None
    return folder.joinpath(*below)


def is_local(path: Path) -> bool:
    """Whether a path, or the folder in which it would be made, is on a disk of this host."""
    real = os.path.realpath(path)
    found, kind = "", ""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:  # a later mount hides an earlier one at the same place
        place, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):
            found, kind = point, source.split()[0]
    return kind in _LOCAL


def _secret_word(folder: Path) -> str | None:
    """A word that this user's processes share and nobody else knows."""
    file = folder / "name-of-local-cache"
    mine = folder / f".{file.name}.{secrets.token_hex(4)}"
    try:
        own_folder(folder)
        if not file.exists():
            mine.touch(0o600, exist_ok=False)
            mine.write_text(secrets.token_hex(16))
            with suppress(FileExistsError):  # another process was first: its word counts
                file.hardlink_to(mine)
            mine.unlink()
        word = file.read_text()
    except OSError:
        return None
    return word if re.fullmatch("[0-9a-f]{32}", word) else None
