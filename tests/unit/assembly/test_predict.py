"""``predict``: every picture once, the same files on any number of ranks, whatever is broken is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from horovod_yolo.assembly import meetings
from horovod_yolo.assembly import predict as module
from horovod_yolo.assembly.predict import Count, PredictOptions, deal, predict
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.prediction.sources import Live, Picture, Source, Video
from horovod_yolo.process.stop import StopRequest
from tests.helpers.pictures import write_picture_file, write_video
from tests.helpers.untrained import write_untrained
from tests.helpers.world import run_world, world_outcomes

LOW: dict[str, Any] = {"conf_thres": 1e-6, "max_det": 4, "device": "cpu", "batch_size": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_untrained(tmp_path_factory.mktemp("weights") / "best.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, one of them broken, two with one stem in different folders; a video of four images."""
    root = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate(("a/one.jpg", "a/two.png", "a/17.jpg", "b/one.png")):
        write_picture_file(root / name, seed, 48 + 16 * seed)
    (root / "b" / "broken.jpg").write_bytes(b"no picture")
    write_video(root / "b" / "clip.avi", 4)
    return root


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def run(ranks: int, **flags: Any) -> Count:
    options = PredictOptions(**{**LOW, **flags})

    def job(comm: Communicator) -> Count:
        return predict(options, comm, StopRequest())

    found = run_world(ranks, job)
    assert all(one == found[0] for one in found)
    return found[0]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_files_on_any_number_of_ranks(weights: str, folder: Path) -> None:
    flags = {"save_txt": True, "save_conf": True, "save_json": True, "save_crop": True}
    source = (str(folder / "a"), str(folder / "b"))
    counts = {
        ranks: run(ranks, weights=weights, source=source, name=str(ranks), **flags) for ranks in (1, 2, 3, 8)
    }
    assert counts[1] == Count(pictures=4, frames=4, objects=32, seen={0, 1, 2, 4, 5}, broken=1)
    assert all(count == counts[1] for count in counts.values())
    alone = files_in(Path("runs/detect/1"))
    for ranks in (2, 3, 8):
        assert files_in(Path(f"runs/detect/{ranks}")) == alone
    pictures = {name for name in alone if "/" not in name}
    assert pictures == {"17.jpg", "one.jpg", "two.png", "one-2.png", "clip.mp4", "predictions.json"}
    labels = {name for name in alone if name.startswith("labels")}
    assert labels == {f"labels/{stem}.txt" for stem in ("17", "one", "two", "one-2", *CLIP)}
    assert len([name for name in alone if name.startswith("crops")]) == 32
    rows = json.loads(alone["predictions.json"])
    assert [row["image_id"] for row in rows[::4]] == [17, "one", "two", *CLIP, "one-2"]
    text = alone["labels/two.txt"].decode().split("\n")
    assert len(text) == 5 and all(len(line.split()) == 6 for line in text[:4])
    of_two = [row for row in rows if row["image_id"] == "two"]
    cls, cx, _, width, _, conf = map(float, text[0].split())
    columns = cv2.imread("runs/detect/1/two.png").shape[1]
    assert (cls, conf) == pytest.approx((of_two[0]["category_id"], of_two[0]["score"]), rel=1e-5)
    assert (cx - width / 2) * columns == pytest.approx(of_two[0]["bbox"][0], abs=1e-3)


CLIP = tuple(f"clip_{k}" for k in (1, 2, 3, 4))


def test_ranks_without_work_are_named(weights: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run(3, weights=weights, source=(str(folder / "b" / "clip.avi"),), vid_stride=3).frames == 2
    assert "1 video; ranks 1 to 2 have nothing to do" in caplog.text
    capture = cv2.VideoCapture("runs/detect/exp/clip.mp4")
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10 / 3, abs=1e-3)
    capture.release()


def test_what_is_broken_is_named_and_the_rest_goes_on(
    weights: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (Path("list.txt")).write_text(f"# mine\n{folder}/a/one.jpg\nmissing.jpg\n")
    count = run(2, weights=weights, source=("list.txt", str(folder / "b" / "broken.jpg")), nosave=True)
    assert (count.pictures, count.broken) == (1, 2)
    assert "missing.jpg: no such file; it is skipped" in caplog.text
    assert "broken.jpg: not an image of a known format, or cut off in its header; it is" in caplog.text
    assert not Path("runs").exists()
    with pytest.raises(UserError, match=r"broken\.jpg: nothing could be read"):
        run(2, weights=weights, source=(str(folder / "b" / "broken.jpg"),))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": ("none",)}, "none: no such file"),
        ({"source": ("none*.jpg",)}, "no picture or video is called so"),
        (
            {"source": ("rtsp://u:secret@127.0.0.1:1/x",)},
            "rtsp://127.0.0.1:1/x: this stream cannot be",
        ),
        ({"source": ("987",)}, "no such camera: 987"),
        ({"source": ("screen",)}, "the screen is no source here"),
        ({"source": ("http://127.0.0.1/a.jpg",)}, "pictures are not downloaded"),
        ({"source": ("gopher://x",)}, "unknown kind of address"),
        ({"classes": (0, 3)}, "--classes names 3. the classes are 0 cat, 1 dog, 2 bird/fish"),
        ({"half": True}, "--half needs a GPU, this is a CPU"),
        ({"view_img": True}, "--view-img: "),
        ({"weights": "none.pt"}, "none.pt: No such file"),
        ({"project": "/dev/null"}, "cannot make the run folder"),
    ],
)
def test_mistakes_are_one_line_on_all_ranks_before_anything_is_written(
    weights: str, folder: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(2, **{"weights": weights, "source": (str(folder / "a"),), **flags})
    assert message in str(caught.value) and "secret" not in str(caught.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"save_conf": True}, "--save-conf without --save-txt"),
        ({"vid_stride": 0}, "--vid-stride is 0"),
        ({"conf_thres": 1.5}, "--conf-thres is 1.5"),
        ({"half": True, "precision": "bf16"}, "--half and --precision bf16"),
    ],
)
def test_flags_out_of_range_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictOptions(weights="w", source=("s",), **flags)


def test_a_request_to_stop_ends_it_with_what_was_found(
    weights: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    line = module._Part._line

    def asked_meanwhile(part: Any, result: Any) -> str:
        stop.ask()
        return line(part, result)

    monkeypatch.setattr(module._Part, "_line", asked_meanwhile)
    options = PredictOptions(weights=weights, source=(str(folder / "b" / "clip.avi"),), save_json=True, **LOW)
    with pytest.raises(StoppedError, match="before all was looked at") as caught:
        predict(options, LocalCommunicator(), stop)
    assert caught.value.saved
    assert len(json.loads(Path("runs/detect/exp/predictions.json").read_text())) == 4
    capture = cv2.VideoCapture("runs/detect/exp/clip.mp4")
    assert capture.read()[0] and not capture.read()[0]
    capture.release()


def test_a_request_to_one_rank_and_what_cannot_be_written_end_all(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks meet while they look: none waits for one that reads a long video, or a stream without an end."""
    monkeypatch.setattr(meetings, "SECONDS_BETWEEN_MEETINGS", 0.1)
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.avi", 400)
    options = PredictOptions(weights=weights, source=("a.avi", "b.avi"), nosave=True, save_txt=True, **LOW)

    def asked(comm: Communicator) -> Count:
        stop = StopRequest()
        if comm.rank == 1:
            stop.ask()
        return predict(options, comm, stop)

    for outcome in world_outcomes(2, asked):
        assert isinstance(outcome, StoppedError)
    labels = tmp_path / "runs/detect/full/labels"
    (labels / "a_3.txt").mkdir(parents=True)  # of the video of rank 0
    full = replace(options, name="full", exist_ok=True)
    for outcome in world_outcomes(2, lambda comm: predict(full, comm, StopRequest())):
        assert isinstance(outcome, UserError) and "a_3: cannot be written (Is a directory)" in str(outcome)
    assert len([*labels.glob("b_*.txt")]) < 300  # rank 1 did not go on to the end


def test_results_do_not_go_where_the_sources_are(weights: str, folder: Path) -> None:
    before = files_in(folder)
    flags = {"project": str(folder), "name": "a", "exist_ok": True, "source": (str(folder / "a"),)}
    with pytest.raises(UserError, match="a: sources are in the folder of the results"):
        run(1, weights=weights, **flags)
    assert files_in(folder) == before


def test_everything_has_one_owner_and_videos_are_dealt_out() -> None:
    sources: list[Source] = [Video("v", "v"), Picture(Path("p"), "p"), Live(0, "c"), Picture(Path("q"), "q")]
    assert deal(sources, 1) == [0, 0, 0, 0]
    assert deal(sources, 4) == [2, 0, 3, 1]
    assert deal(sources[:1], 4) == [0]


def test_a_video_is_never_in_memory(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most some batches of its images are there at a time, however long it is."""
    alive = most = 0

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    from horovod_yolo.prediction import capture

    retrieve = capture.retrieve

    def counted(opened: Any) -> Any:
        nonlocal alive, most
        image = retrieve(opened)
        alive += 1
        most = max(most, alive)
        assert image is not None
        return image.view(Counted)

    monkeypatch.setattr(capture, "retrieve", counted)
    write_video(tmp_path / "long.avi", 60, rows=16, columns=16)
    count = run(1, weights=weights, source=("long.avi",), batch_size=4, imgsz=32)
    assert count.frames == 60
    assert 4 <= most <= 12
