"""Validation is sharded without padding, and its numbers do not depend on the number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from horovod_yolo.checkpoint import store
from horovod_yolo.checkpoint.state import EarlyStopping, Progress, inference_state, training_state
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.data.index import assemble, list_entries, scan
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.models.zoo import build_model
from tests.helpers import ranks


@pytest.fixture(scope="module")
def weights(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that finds something: its head's biases say "object" more often than a new one's."""
    torch.manual_seed(3)
    model = build_model("yolov5n", 10)
    with torch.no_grad():
        for conv in model.head.m:
            conv.bias += 2.0 * torch.randn_like(conv.bias)
    state = training_state(
        model=model.state_dict(),
        ema={"weights": model.state_dict(), "updates": 1},
        optimizer={"param_groups": []},
        scaler={},
        progress=Progress(),
        early_stopping=EarlyStopping(),
        metrics={},
        config=to_dict(TrainConfig(data=str(digits), cfg="yolov5n", imgsz=64)),
        model_name="yolov5n",
        names=tuple(str(digit) for digit in range(10)),
    )
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    store.write(path, store.serialise(inference_state(state)))
    return path


def validate(weights: Path, world_size: int, detections: Path) -> tuple[str, list[dict[str, object]]]:
    job = ranks.run(
        ["-m", "horovod_yolo.cli", "val", "--weights", weights, "--task", "train", "--batch", "8",
         "--workers", "0", "--save-json", detections],
        world_size,
        "plain" if world_size == 1 else "gloo",
    )  # fmt: skip
    assert job.code == 0, job.output
    table = job.output[job.output.index("class ") :].replace("[0]<stdout>:", "")
    return "\n".join(line.rstrip() for line in table.splitlines()[:12]), json.loads(detections.read_text())


def test_one_and_three_ranks_give_the_same_numbers(weights: Path, digits: Path, tmp_path: Path) -> None:
    alone, found_alone = validate(weights, 1, tmp_path / "1.json")
    three, found_three = validate(weights, 3, tmp_path / "3.json")
    assert alone == three
    spec = load_data_yaml(digits)
    records, _ = scan(list_entries(spec, "train"), spec.names, spec.root)
    images = {record.image_id for record in assemble(spec.root, spec.names, records).records}
    assert {row["image_id"] for row in found_alone} <= images
    assert len(found_alone) > 100
    assert len(found_alone) == len(found_three)
    ap_alone, ap_three = (_coco_numbers(digits, file) for file in (tmp_path / "1.json", tmp_path / "3.json"))
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
