"""Folders that nobody else could have put there, also below /tmp, where anyone may take any name first."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def own_folder(path: Path) -> None:
    """Make a folder and its parents, where they are not there, and see that they can be trusted.

    In a folder where anyone may write, such as /tmp, what is made is for this user alone (mode 0700), and
    what is there already must be his, root's or his group's; a link must be his or root's. Elsewhere the
    permissions of the parents decide, as ever.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    check_own(path)
    for place in _downwards(path):
        try:
            place.mkdir(mode=mode_below(place.parent))
        except FileExistsError:
            _check(place)


def check_own(path: Path) -> None:
    """See that a folder, as far as it is there, is one that `own_folder` would take, and so where links lead.

    Raises:
        OSError: it is somebody else's.
    """
    for way in (path, Path(os.path.realpath(path))):
        for place in _downwards(way):
            if not place.exists():
                break
            _check(place)


def _downwards(path: Path) -> list[Path]:
    path = path.absolute()
    return [*reversed(path.parents), path][1:]  # not the root


def mode_below(folder: Path) -> int:
    """The mode for something new in a folder: what the umask leaves, or for this user alone."""
    return 0o700 if _anyone_may_write(folder) else 0o777


def _anyone_may_write(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def _check(place: Path) -> None:
    found = place.lstat()
    if found.st_uid in (os.geteuid(), 0) or not _anyone_may_write(place.parent):
        return
    group = found.st_gid in (os.getegid(), *os.getgroups()) and found.st_mode & stat.S_IWGRP
    if stat.S_ISLNK(found.st_mode) or not group:
        raise OSError(errno.EPERM, "it belongs to another user, who could change what is in it", str(place))
