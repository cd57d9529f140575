"""Validation is sharded without padding, and its numbers do not depend on the number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from horovod_yolo.data.index import assemble, list_entries, scan
from horovod_yolo.data.spec import load_data_yaml
from tests.helpers import ranks


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


@pytest.fixture(scope="module")
def weights(one_class: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned just enough to hit something."""
    folder = tmp_path_factory.mktemp("weights")
    flags = (
        "--cfg yolov5n --img 128 --batch 7 --epochs 15 --noval --noplots --workers 0 --optimizer AdamW "
        "--hyp horovod_yolo/config/hyp.digits.yaml --name run"
    )
    job = ranks.run(["train.py", "--data", one_class, "--project", folder, *flags.split()], 1, "plain")
    assert job.code == 0, job.output
    return folder / "run" / "weights" / "last.pt"


def validate(weights: Path, world_size: int, detections: Path) -> tuple[str, list[dict[str, object]]]:
    job = ranks.run(
        ["-m", "horovod_yolo.cli", "val", "--weights", weights, "--task", "train", "--batch", "8",
         "--workers", "0", "--save-json", detections],
        world_size,
        "plain" if world_size == 1 else "gloo",
    )  # fmt: skip
    assert job.code == 0, job.output
    table = job.output[job.output.index("class ") :].replace("[0]<stdout>:", "")
    return "\n".join(line.rstrip() for line in table.splitlines()[:3]), json.loads(detections.read_text())


def test_one_and_three_ranks_give_the_same_numbers(weights: Path, one_class: Path, tmp_path: Path) -> None:
    alone, found_alone = validate(weights, 1, tmp_path / "1.json")
    three, found_three = validate(weights, 3, tmp_path / "3.json")
    assert alone == three
    spec = load_data_yaml(one_class)
    records, _ = scan(list_entries(spec, "train"), spec.names, spec.root)
    images = {record.image_id for record in assemble(spec.root, spec.names, records).records}
    assert {row["image_id"] for row in found_alone} <= images
    assert len(found_alone) > 100
    assert len(found_alone) == len(found_three)
    ap_alone, ap_three = (
        _coco_numbers(one_class, file) for file in (tmp_path / "1.json", tmp_path / "3.json")
    )
    assert ap_alone["AP"] > 0, "the network finds nothing, so the comparison says nothing"
    assert ap_three == pytest.approx(ap_alone, abs=1e-6)


def _coco_numbers(data: Path, detections: Path) -> dict[str, float]:
    """The answer of pycocotools for a saved results file."""
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    spec = load_data_yaml(data)
    scanned, _ = scan(list_entries(spec, "train"), spec.names, spec.root)
    records = assemble(spec.root, spec.names, scanned).records
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
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}
