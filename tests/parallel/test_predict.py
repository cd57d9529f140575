"""``horovod-yolo predict`` as people start it: under horovodrun, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from horovod_yolo.cli import main
from tests.helpers import ranks
from tests.helpers.pictures import write_picture_file, write_video
from tests.helpers.untrained import write_untrained
from tests.helpers.world_command import exit_codes


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Three pictures, one of them broken, and a video."""
    for seed in range(2):
        write_picture_file(tmp_path / "in" / f"{seed}.jpg", seed)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    write_video(tmp_path / "in" / "clip.avi", 3)
    weights = str(write_untrained(tmp_path / "best.pt"))
    flags = "--conf 0.000001 --max-det 2 --device cpu --batch 1 --save-json --project"
    return ["predict", "--weights", weights, "--source", str(tmp_path / "in"), *flags.split(), str(tmp_path)]


def test_two_ranks_under_horovodrun_write_what_one_does(argv: list[str], tmp_path: Path) -> None:
    job = ranks.run(["-m", "horovod_yolo.cli", *argv], 2)
    assert job.code == 0, job.output
    assert "broken.png: not an image of a known format" in job.output
    assert "2 pictures and 3 images of videos: 10 objects; 1 skipped, which cannot be read" in job.output
    assert exit_codes(1, lambda: main(argv)) == [0]
    one, two = tmp_path / "exp2", tmp_path / "exp"
    assert {path.name for path in two.iterdir()} == {"0.jpg", "1.jpg", "clip.mp4", "predictions.json"}
    for path in two.iterdir():
        assert path.read_bytes() == (one / path.name).read_bytes()
    ids = [row["image_id"] for row in json.loads((two / "predictions.json").read_text())]
    assert ids == [0, 0, 1, 1, *[f"clip_{k}" for k in (1, 1, 2, 2, 3, 3)]]


def test_nothing_that_can_be_read_is_the_users_mistake_on_all_ranks(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv[argv.index("--source") + 1] = str(tmp_path / "in" / "broken.png")
    assert exit_codes(2, lambda: main(argv)) == [2, 2]
    assert capsys.readouterr().err.endswith("broken.png: nothing could be read. the lines above say why\n")
    assert exit_codes(2, lambda: main([*argv, "--view-img"])) == [2, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert "opencv-python" in line or "display" in line
