from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from horovod_yolo.metrics.accumulator import DetectionSummary
from horovod_yolo.report.plots import plot_pr_curves, plot_results, plot_samples
from tests.unit.metrics.references import accumulate, random_image

ROW = {"epoch": 0.0, "train/box_loss": 0.1, "val/box_loss": 0.2, "metrics/mAP_0.5": 0.5, "x/lr0": 0.01}


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no image"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing unfinished is left
    return image


def summary(classes: int, images: int = 12) -> DetectionSummary:
    rng = np.random.default_rng(0)
    return accumulate([random_image(rng, classes, 8, 20) for _ in range(images)], classes).summary()


def shows(image: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    return bool((np.abs(image[..., ::-1].astype(int) - rgb).sum(axis=-1) < 12).any())


BLUE, ORANGE = (0x2F, 0x6D, 0xB5), (0xD9, 0x82, 0x2B)


def test_results_draw_what_the_rows_hold(tmp_path: Path) -> None:
    plot_results([{**ROW, "epoch": float(e)} for e in range(3)], tmp_path / "results.png")
    both = read(tmp_path / "results.png")
    assert shows(both, BLUE) and shows(both, ORANGE)
    plot_results([{"epoch": 0.0, "train/box_loss": 0.1}], tmp_path / "results.png")
    one = read(tmp_path / "results.png")
    assert shows(one, BLUE) and not shows(one, ORANGE)
    assert one.shape[1] < both.shape[1]


def test_the_highest_marker_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k))
    columns = ("images_per_s", "metrics/mAP_0.5", "train/box_loss", "x/lr0")
    rows = [{"epoch": e, **dict.fromkeys(columns, 1 - e / 1000)} for e in (1.0, 2.0)]
    plot_results(rows, tmp_path / "r.png")
    lines = [line for axis in drawn[0].axes for line in axis.lines]
    assert len(lines) == len(columns)
    for line in lines:
        assert line.axes is not None and line.get_marker() == "o"
        highest = line.get_transform().transform(line.get_xydata())[:, 1].max()
        assert highest + line.get_markersize() / 2 * drawn[0].dpi / 72 <= line.axes.bbox.y1


@pytest.mark.parametrize("rows", [[], [{"epoch": 0.0, "train/box_loss": math.nan}]])
def test_results_without_numbers_are_an_empty_picture(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    plot_results(rows, tmp_path / "results.png")
    assert not shows(read(tmp_path / "results.png"), BLUE)


def test_gaps_in_the_rows_are_left_out(tmp_path: Path) -> None:
    plot_results([ROW, {"epoch": 1.0}, {**ROW, "epoch": 2.0, "train/box_loss": math.inf}], tmp_path / "r.png")
    assert shows(read(tmp_path / "r.png"), BLUE)


def test_curves_of_few_classes_are_coloured_and_of_many_grey(tmp_path: Path) -> None:
    plot_pr_curves(summary(2), ["cat", "dog"], tmp_path / "pr.png")
    assert shows(read(tmp_path / "pr.png"), ORANGE)
    plot_pr_curves(summary(30, 60), [], tmp_path / "pr.png")
    assert not shows(read(tmp_path / "pr.png"), ORANGE)


def test_curves_of_nothing(tmp_path: Path) -> None:
    plot_pr_curves(accumulate([], 3).summary(), ["a", "b", "c"], tmp_path / "pr.png")
    assert not shows(read(tmp_path / "pr.png"), BLUE)


@pytest.mark.parametrize("name", ["$x", "a$b$c^{", "_hidden", "数字", "<script>", "long " * 20, ""])
def test_any_class_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    plot_pr_curves(summary(2, 4), [name, "other"], tmp_path / "pr.png")
    read(tmp_path / "pr.png")
    image, box = np.zeros((60, 60, 3), np.uint8), np.array([[10.0, 30.0, 50.0, 50.0]])
    plot_samples([image], [box], [np.zeros(1, np.int64)], None, [name], tmp_path / "pr.png")
    read(tmp_path / "pr.png")


def test_samples_show_boxes_at_their_place_and_no_more_than_16_images(tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    image = np.full((100, 100, 3), 255, np.uint8)
    box, class_id, score = np.array([[20.0, 40.0, 80.0, 90.0]]), np.zeros(1, np.int64), np.array([0.5])
    plot_samples([image], [box], [class_id], [score], ["cat"], out)
    drawn = read(out)
    side = np.array(drawn.shape[:2])
    rows, columns = np.nonzero(np.abs(drawn[..., ::-1].astype(int) - BLUE).sum(axis=-1) < 12)
    assert columns.min() / side[1] == pytest.approx(0.2, abs=0.03)
    assert rows.max() / side[0] == pytest.approx(0.9, abs=0.03)

    plot_samples([image] * 20, [box] * 20, [class_id] * 20, None, ["cat"], out)
    four_by_four = read(out).shape
    plot_samples([image] * 16, [box] * 16, [class_id] * 16, None, ["cat"], out)
    assert read(out).shape == four_by_four


def test_samples_of_other_sizes_without_boxes_and_none_at_all(tmp_path: Path) -> None:
    sizes = [(40, 80), (80, 40), (64, 64)]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    nothing = [np.zeros((0, 4))] * 3, [np.zeros(0, np.int64)] * 3
    plot_samples(images, *nothing, None, [], tmp_path / "samples.png")
    assert (read(tmp_path / "samples.png") == 0).any()
    plot_samples([], [], [], None, [], tmp_path / "samples.png")
    assert (read(tmp_path / "samples.png") == 255).all()


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match="zip"):
        plot_samples(
            [np.zeros((9, 9, 3), np.uint8)], [np.zeros((2, 4))], [np.zeros(1, np.int64)], None, ["a"], out
        )
    assert out.read_bytes() == b"old"


def test_importing_the_module_does_not_load_matplotlib() -> None:
    code = "import sys, horovod_yolo.report.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
