"""Validation is sharded without padding, and its numbers do not depend on the number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from horovod_yolo.cli import train_main, val_main
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.metrics.accumulator import MAX_DETECTIONS
from tests.helpers import ranks
from tests.helpers.scanned import annotations_of
from tests.helpers.tiny_zoo import NAME, add_tiny
from tests.helpers.world_command import exit_codes


@pytest.fixture(scope="module")
def one_class(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as one class, of which even an untrained network hits a few."""
    folder = tmp_path_factory.mktemp("one_class") / "data"
    shutil.copytree(digits.parent, folder)
    for label in (folder / "labels").rglob("*.txt"):
        rows = [line.split()[1:] for line in label.read_text().splitlines()]
        label.write_text("".join(f"0 {' '.join(row)}\n" for row in rows))
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [digit]\n")
    return folder / "data.yaml"


def trained(folder: Path, data: Path, flags: str) -> Path:
    """The last checkpoint of a run on one rank, in this process."""
    words = "--img 128 --batch 7 --noval --noplots --workers 0 --optimizer AdamW --hyp"
    place = [
        "horovod_yolo/config/hyp.digits.anchor_based.yaml",
        "--data",
        data,
        "--project",
        folder,
        "--name",
        "run",
    ]
    argv = [str(word) for word in [*words.split(), *place, *flags.split()]]
    assert exit_codes(1, lambda: train_main(argv)) == [0]
    return folder / "run" / "weights" / "last.pt"


def arguments(weights: Path, detections: Path, *, noplots: bool = True) -> list[str]:
    return ["--weights", str(weights), "--task", "train", "--batch", "8", "--workers", "0", "--save-json",
            str(detections), *["--noplots"] * noplots]  # fmt: skip


def summary(printed: str) -> str:
    """The head of the table and its first rows."""
    table = printed[printed.index("class ") :].replace("[0]<stdout>:", "")
    return "\n".join(line.rstrip() for line in table.splitlines()[:3])


def test_one_and_three_ranks_give_the_same_numbers(
    one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        add_tiny(patch)
        weights = trained(tmp_path, one_class, f"--cfg {NAME} --epochs 15")  # enough to hit something
        files, tables = {}, {}
        for size in (1, 3):
            files[size] = tmp_path / f"{size}.json"
            capsys.readouterr()
            argv = [*arguments(weights, files[size], noplots=False), "--project", str(tmp_path / "val")]
            assert exit_codes(size, lambda argv=argv: val_main(argv)) == [0] * size
            tables[size] = summary(capsys.readouterr().out)
    assert tables[1] == tables[3]
    found = {size: json.loads(file.read_text()) for size, file in files.items()}
    assert len(found[1]) > 100
    assert len(found[1]) == len(found[3])
    for a, b in zip(found[1], found[3], strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert [a["score"], *a["bbox"]] == pytest.approx([b["score"], *b["bbox"]], rel=1e-4, abs=1e-3)
    ap = {size: _coco_numbers(one_class, file) for size, file in files.items()}
    assert ap[1]["AP"] > 0, "the network finds nothing, so the comparison says nothing"
    assert ap[3] == pytest.approx(ap[1], abs=1e-6)
    assert f"{ap[1]['AP50']:.3f}"[1:] in tables[1]
    left = {path.relative_to(tmp_path / "val").as_posix() for path in (tmp_path / "val").glob("*/*")}
    names = ("PR_curve.png", "confusion_matrix.png", "report.html", "results.json")
    assert left == {f"{folder}/{name}" for folder in ("exp", "exp2") for name in names}
    pages = [json.loads((tmp_path / "val" / name / "results.json").read_text()) for name in ("exp", "exp2")]
    assert [page["world_size"] for page in pages] == [1, 3] and pages[0]["task"] == "train"
    assert pages[1]["metrics"]["mAP50"] == pytest.approx(pages[0]["metrics"]["mAP50"], abs=1e-6)
    text = (tmp_path / "val/exp/report.html").read_text()
    assert "Confusion matrix" in text and f"{pages[0]['metrics']['mAP50']:.4g}" in text


def test_so_it_is_with_real_ranks(
    one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in this process, two under horovodrun; with as many slices to the bit."""
    weights = trained(tmp_path, one_class, "--cfg yolov5n --epochs 1")
    capsys.readouterr()
    alone = [*arguments(weights, tmp_path / "1.json"), "--slices", "2"]
    assert exit_codes(1, lambda: val_main(alone)) == [0]
    printed = summary(capsys.readouterr().out)
    job = ranks.run(["-m", "horovod_yolo.cli", "val", *arguments(weights, tmp_path / "2.json")], 2)
    assert job.code == 0, job.output
    assert summary(job.output) == printed
    found = [json.loads((tmp_path / f"{size}.json").read_text()) for size in (1, 2)]
    assert len(found[0]) > 100 and found[0] == found[1]


def _coco_numbers(data: Path, detections: Path) -> dict[str, float]:
    """The answer of pycocotools for a saved results file, of whose detections ``val`` counts 300 an image."""
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    spec = load_data_yaml(data)
    records = annotations_of(spec).records
    with redirect_stdout(StringIO()):
        truth = COCO()
        annotations = [
            {"image_id": r.image_id, "category_id": int(c), "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
             "area": float(a), "iscrowd": 0}
            for r in records
            for c, b, a in zip(r.classes, r.boxes_xyxy.tolist(), r.areas, strict=True)
        ]  # fmt: skip
        truth.dataset = {
            "images": [{"id": r.image_id} for r in records],
            "categories": [{"id": c} for c in range(spec.num_classes)],
            "annotations": [{**row, "id": number} for number, row in enumerate(annotations, 1)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # `summarize` knows no limit but 100
    assert (precision >= 0).all(), "every class has objects"
    return {"AP": float(precision.mean()), "AP50": float(precision[0].mean())}


def test_a_mistake_leaves_no_folder_of_results(tmp_path: Path) -> None:
    argv = ["--weights", str(tmp_path / "absent.pt"), "--project", str(tmp_path / "val")]
    assert exit_codes(2, lambda: val_main(argv)) == [2, 2]
    assert list(tmp_path.glob("val/*")) == []
    (tmp_path / "file").write_text("")
    assert exit_codes(2, lambda: val_main([*argv[:3], str(tmp_path / "file")])) == [2, 2]
