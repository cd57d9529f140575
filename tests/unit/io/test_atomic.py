"""A file that is being replaced is the old one or the new one, for everyone and after every end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from horovod_yolo.io.atomic import replacing, unfinished_name


def test_the_old_content_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for old, new in ((None, b"first"), (b"first", b"second")):
        with replacing(path) as file:
            file.write(new)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == old
        assert path.read_bytes() == new
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "absent/last.pt"):
        pass


def test_of_several_writers_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    together = threading.Barrier(4)

    def write(letter: bytes) -> None:
        with replacing(path) as file:
            for _ in range(20):
                file.write(letter * 1000)
                together.wait(timeout=20)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=20)
    content = path.read_bytes()
    assert len(content) == 20_000 and len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_the_old_file_and_a_hidden_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom horovod_yolo.io.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == b"old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.match(".last.pt.????????.tmp") and left.read_bytes() == b"half"


def test_others_may_read_what_they_could_read_before(tmp_path: Path) -> None:
    """As `open` makes it: the umask decides, not a temporary file's mode."""
    with replacing(tmp_path / "file"):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_unfinished_names_do_not_repeat(tmp_path: Path) -> None:
    names = {unfinished_name(tmp_path / "a") for _ in range(100)}
    assert len(names) == 100 and {name.parent for name in names} == {tmp_path}
