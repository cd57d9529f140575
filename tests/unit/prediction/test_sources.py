"""What callers name, and what is meant by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.prediction.files import class_folder, output_stems
from horovod_yolo.prediction.sources import Live, Picture, Source, Video, find_sources, without_password


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.jpg", "b.PNG", "c.mp4", "notes.md", "deep/d.jpg", "deep/deeper/e.jpg", "x[1].jpg", "0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.jpg", ["Picture a.jpg"]),
        ("c.mp4", ["Video c.mp4"]),
        (".", ["Picture a.jpg", "Picture b.PNG", "Video c.mp4", "Picture x[1].jpg"]),
        ("*.jpg", ["Picture a.jpg", "Picture x[1].jpg"]),
        (
            "**/*.jpg",
            ["Picture a.jpg", "Picture deep/d.jpg", "Picture deep/deeper/e.jpg", "Picture x[1].jpg"],
        ),
        ("x[1].jpg", ["Picture x[1].jpg"]),
        ("0", ["Live camera 0"]),
        (2, ["Live camera 2"]),
        ("./0", ["Picture 0"]),
        (Path("0"), ["Picture 0"]),
        ("rtsp://u:p@h:554/x?a=b", ["Live rtsp://h:554/x?a=b"]),
        ("http://h/clip.MP4?token=1", ["Video http://h/clip.MP4?token=1"]),
        ("http://h/video", ["Live http://h/video"]),
        (["a.jpg", Path("deep")], ["Picture a.jpg", "Picture deep/d.jpg"]),
        (np.zeros((2, 4, 5, 3), np.uint8), ["Picture image0", "Picture image1"]),
        (["a.jpg", np.zeros((4, 5, 3), np.uint8), 1], ["Picture a.jpg", "Picture image0", "Live camera 1"]),
    ],
)
def test_what_is_meant(here: Path, given: object, expected: list[str]) -> None:
    found = list(find_sources(given))  # type: ignore[arg-type]
    assert [f"{type(source).__name__} {source.name}" for source in found] == expected


def test_lists_start_at_the_current_folder_or_else_at_their_own(here: Path) -> None:
    lines = "# cameras\n\n  a.jpg \nd.jpg\nmissing.jpg\n1\nrtsp://h/x\nc.mp4\ndeep/deeper\n"
    (here / "deep" / "list.txt").write_text(lines)
    found = [f"{type(source).__name__} {source.name}" for source in find_sources("deep/list.txt")]
    assert found == [
        *("Picture a.jpg", "Picture deep/d.jpg", "Picture missing.jpg", "Live camera 1", "Live rtsp://h/x"),
        *("Video c.mp4", "Picture deep/deeper/e.jpg"),
    ]
    (here / "empty.streams").write_text("# none\n")
    with pytest.raises(UserError, match=r"empty\.streams: the list is empty"):
        list(find_sources("empty.streams"))
    (here / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.txt: cannot be read \(it is not text\)"):
        list(find_sources("binary.txt"))


def test_a_password_is_not_shown() -> None:
    assert without_password("rtsp://me:p@ss@host/a@b?c=@") == "rtsp://host/a@b?c=@"
    assert without_password("rtsp://host:554/x") == "rtsp://host:554/x"


def named(*names: str) -> list[Source]:
    return [Video(name, name) if name.endswith("mp4") else Picture(Path(name), name) for name in names]


def test_no_two_sources_write_one_file() -> None:
    sources = named(
        "a/x.jpg", "b/x.jpg", "b/x.png", "x-2.jpg", "X.jpg", "clip_3.jpg", "clip.mp4", "c/clip.mp4"
    )
    stems = output_stems(sources)
    assert stems == ["x", "x-2", "x-3", "x-2-2", "X-4", "clip_3-2", "clip", "clip-2"]
    files = [
        f"{stem}_{frame}"
        for stem, source in zip(stems, sources, strict=True)
        if isinstance(source, Video)
        for frame in range(5)
    ]
    files += [stem for stem, source in zip(stems, sources, strict=True) if isinstance(source, Picture)]
    assert len({file.casefold() for file in files}) == len(files)
    assert len({stem.casefold() for stem in stems}) == len(stems)


def test_many_pictures_of_one_name_take_no_time() -> None:
    stems = output_stems(named(*(f"{i}/x.jpg" for i in range(20_000))))
    assert len(set(stems)) == 20_000


def test_streams_have_names_that_files_can_have() -> None:
    sources: list[Source] = [Live("", "rtsp://h:554/a/../b?x=1"), Live(0, "camera 0"), Live("", "rtsp://")]
    assert output_stems(sources) == ["rtsp_h_554_a_.._b_x_1", "camera_0", "rtsp"]


def test_class_names_cannot_leave_the_folder() -> None:
    names = ["cat", "traffic light", "../x", "..", "", "a/b", "C:\\x", "собака", ".hidden"]
    assert [class_folder(i, name) for i, name in enumerate(names)] == [
        *("cat", "traffic light", "2-_x", "3", "4", "5-a_b", "6-C_x", "собака", "8-hidden"),
    ]
