"""Where messages of ranks go."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from horovod_yolo.assembly.ending import complain
from horovod_yolo.core.errors import UserError
from horovod_yolo.process import logs

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("horovod_yolo")
    handlers, levels = root.handlers[:], (root.level, own.level)
    root.handlers = []
    yield
    for handler in (*root.handlers, *own.handlers):
        handler.close()
    own.handlers = []
    root.handlers, logging.raiseExceptions = handlers, True
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def say() -> None:
    log = logging.getLogger("horovod_yolo.training")
    log.debug("detail")
    log.info("news")
    log.warning("beware")


@pytest.mark.parametrize(("rank", "shown"), [(0, "news\nbeware\n"), (2, f"rank 2 on {HOST}: beware\n")])
def test_the_console_has_the_news_once_and_every_warning(
    capsys: pytest.CaptureFixture[str], rank: int, shown: str
) -> None:
    logs.set_up(rank, 4)
    say()
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("rank", "size", "name"), [(0, 1, "00"), (3, 4, "03"), (7, 128, "007"), (127, 128, "127")]
)
def test_a_file_of_each_rank_has_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int, size: int, name: str
) -> None:
    folder = tmp_path / "new" / "logs"
    for _ in range(2):  # a job that is started again appends
        logs.set_up(rank, size, str(folder))
        say()
    (path,) = folder.iterdir()
    assert path.name == f"rank-{name}-{HOST}.log"
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    for line, (level, text) in zip(
        lines, [("DEBUG", "detail"), ("INFO", "news"), ("WARNING", "beware")] * 2, strict=True
    ):
        assert line.endswith(f" {level} rank {rank} on {HOST} horovod_yolo.training: {text}")
    assert capsys.readouterr().out.count("beware") == 2


def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file/rank-00-.*no log can be written.*--log-dir"):
        logs.set_up(0, 1, str(tmp_path / "file"))


def test_a_script_has_the_same_on_its_console(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers = []  # but for pytest's
    for _ in range(2):  # as with two trainings
        logs.set_up(0, 1, as_script=True)
    say()
    assert capsys.readouterr().out == "news\nbeware\n"
    assert not logging.getLogger().handlers


def test_what_a_script_has_set_up_for_logging_stays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="MINE %(message)s", handlers=[logging.StreamHandler()], force=True
    )
    (own,) = logging.getLogger().handlers
    own.setLevel(logging.WARNING)
    logs.set_up(0, 2, str(tmp_path), as_script=True)
    say()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "MINE beware\n")
    assert logging.getLogger().handlers == [own] and logging.getLogger().level == logging.WARNING
    assert len((tmp_path / f"rank-00-{HOST}.log").read_text().splitlines()) == 3


def test_what_a_file_is_called_stays_on_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And moves no cursor: who names a file could otherwise write lines like ours."""
    logs.set_up(0, 1, str(tmp_path))
    logging.getLogger("horovod_yolo.data").warning("left out: %s", "a\nerror: b\x1b[2J\x9b\u00e9\t.jpg")
    (file,) = tmp_path.iterdir()
    expected = "left out: a\\x0aerror: b\\x1b[2J\\x9bé\t.jpg\n"
    assert capsys.readouterr().out == expected and file.read_text().endswith(expected)
    complain("no\nsuch")
    assert capsys.readouterr().err == "error: no\\x0asuch\n"
