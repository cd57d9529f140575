from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.metrics.coco_results import (
    evaluate_files,
    format_classes,
    format_table,
    to_json,
    write_results,
)
from horovod_yolo.metrics.matching import ImageDetections
from tests.unit.metrics.references import coco_files, pycocotools_evaluation, random_image

CASES = Path(__file__).resolve().parents[3] / "../shared/data/eval-cases"
COCO_CASES = (
    "cocoapi-fakebbox100",
    "detectron2-2gt",
    "fce-ignore-dense",
    "mmdet-perfect-4box",
    "torchmetrics-inputs1",
    "torchmetrics-inputs2-extra-image",
    "torchmetrics-inputs3-empty-pred",
    "torchmetrics-missing-gt",
    "torchmetrics-missing-pred",
    "torchmetrics-one-box-0.6",
)
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"the evaluation cases are not at {CASES}")


def dataset(**changes: Any) -> dict[str, Any]:
    annotation = {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "bbox": [0, 0, 50, 50],
        "area": 2500,
        "iscrowd": 0,
    }
    return {
        "images": [{"id": 7}, {"id": 8}],
        "categories": [{"id": 3, "name": "three"}, {"id": 1, "name": "one"}],
        "annotations": [annotation],
        **changes,
    }


def result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 3, "bbox": [0, 0, 50, 50], "score": 0.5, **changes}


def written(folder: Path, gt: Any, dt: Any) -> tuple[Path, Path]:
    paths = folder / "gt.json", folder / "dt.json"
    for path, content in zip(paths, (gt, dt), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return paths


@needs_cases
@pytest.mark.parametrize("case", COCO_CASES)
def test_known_cases(case: str) -> None:
    evaluation = evaluate_files(CASES / case / "gt.json", CASES / case / "dt.json")
    expected = json.loads((CASES / case / "expected.json").read_text())
    numbers = expected["pycocotools_2.0.x"]
    np.testing.assert_allclose(
        list(evaluation.summary.coco.values()), list(numbers["stats"].values()), rtol=0, atol=1e-12
    )
    ours = {
        str(category.id): (entry.ap50_95, entry.ap50)
        for category, entry in zip(evaluation.categories, evaluation.summary.per_class, strict=True)
    }
    assert ours == {
        name: (pytest.approx(entry["AP"], abs=1e-12), pytest.approx(entry["AP50"], abs=1e-12))
        for name, entry in numbers["per_class"].items()
    }


@needs_cases
def test_the_official_demo_reads_as_published() -> None:
    case = CASES / "cocoapi-fakebbox100"
    table = format_table(evaluate_files(case / "gt.json", case / "dt.json").summary).splitlines()
    published = "0.505 0.697 0.573 0.586 0.519 0.501 0.387 0.594 0.595 0.640 0.566 0.564"
    assert " ".join(line.rpartition(" = ")[2] for line in table) == published
    assert table[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.505"
    assert table[6] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.387"


@needs_cases
def test_string_ids_of_images_match_numbers() -> None:
    case = CASES / "fce-ignore-dense"
    strings = evaluate_files(case / "gt_original_string_ids.json", case / "dt.json").summary
    assert strings.coco == evaluate_files(case / "gt.json", case / "dt.json").summary.coco


@needs_cases
@pytest.mark.parametrize(("name", "emptied"), [("empty_dt", "dt"), ("empty_gt", "gt")])
def test_empty_sides(tmp_path: Path, name: str, emptied: str) -> None:
    case = CASES / "detectron2-2gt"
    gt, dt = (json.loads((case / f"{side}.json").read_text()) for side in ("gt", "dt"))
    gt, dt = ({**gt, "annotations": []}, dt) if emptied == "gt" else (gt, [])
    variants = json.loads((case / "expected_variants.json").read_text())
    (expected,) = (entry["stats"] for title, entry in variants.items() if title.startswith(name))
    summary = evaluate_files(*written(tmp_path, gt, dt)).summary
    assert list(summary.coco.values()) == pytest.approx(list(expected.values()), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_order_in_the_files_decides_ties_as_in_pycocotools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, results = coco_files([random_image(rng, 3, 10, 30) for _ in range(12)], 3)
    for rows in (truths["images"], truths["categories"], truths["annotations"], results):
        rng.shuffle(rows)
    for row in results:
        row["score"] = round(row["score"], 1)
    ours = evaluate_files(*written(tmp_path, truths, results)).summary
    np.testing.assert_allclose(
        list(ours.coco.values()), pycocotools_evaluation(truths, results).stats, rtol=0, atol=1e-12
    )


def test_an_annotation_with_the_id_0_can_be_found(tmp_path: Path) -> None:
    gt = dataset()
    gt["annotations"][0]["id"] = 0
    assert evaluate_files(*written(tmp_path, gt, [result()])).summary.coco["AP"] == pytest.approx(1)
    assert pycocotools_evaluation(gt, [result()]).stats[0] == 0  # the trap that the module's text describes


def test_missing_fields_have_defaults_and_ignore_has_no_effect(tmp_path: Path) -> None:
    bare = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 50, 50], "ignore": 1}
    summary = evaluate_files(*written(tmp_path, dataset(annotations=[bare]), [result()])).summary
    assert summary.coco["AP"] == summary.coco["APm"] == pytest.approx(1)
    assert summary.coco["APs"] == summary.coco["APl"] == -1


def test_unknown_categories_and_orphans_are_counted(tmp_path: Path) -> None:
    gt = dataset()
    gt["annotations"] += [
        {**gt["annotations"][0], "image_id": 99},
        {**gt["annotations"][0], "category_id": 99},
    ]
    evaluation = evaluate_files(*written(tmp_path, gt, [result(), result(category_id=5)]))
    assert (evaluation.skipped_truths, evaluation.skipped_detections) == (2, 1)
    assert evaluation.summary.coco["AP"] == pytest.approx(1)
    assert [(c.id, c.name) for c in evaluation.categories] == [(1, "one"), (3, "three")]


@pytest.mark.parametrize(
    ("gt", "dt", "message"),
    [
        (dataset(), [result(), result(image_id=12)], r"dt\.json: results\[1\] names image 12, which is not"),
        (dataset(), [result(category_id=9)], r"dt\.json: no result is of a category.* is of 9\..* 1, 3$"),
        (dataset(), '[\n{"image_id": 7,}]', r"dt\.json:2:16: is not JSON"),
        (dataset(), {}, r"dt\.json: has no list of results"),
        (dataset(), [result(), 5], r"results\[1\] is 5"),
        (dataset(), [result(bbox=[1, 2, 3])], r"results\[0\]\.bbox is \[1, 2, 3\]\. It must be four"),
        (dataset(), [result(), result(bbox=None)], r"results\[1\]\.bbox is None"),
        (dataset(), [result(score=float("nan"))], r"results\[0\]\.score is nan"),
        (dataset(), [result(score="high")], r"results\[0\]\.score is 'high'"),
        (dataset(images=[{"id": 7}, {"id": "7"}]), [], r"gt\.json: images has the id '7' twice"),
        (dataset(categories=[{"name": "x"}]), [], r"categories\[0\]\.id is None"),
        (dataset(annotations=None), [], r"gt\.json: has no list of annotations"),
        (dataset(images=[]), [], r"gt\.json: images is empty"),
        (dataset(categories=[]), [], r"gt\.json: categories is empty"),
        ([], [], r"gt\.json: is not a COCO data set"),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(tmp_path: Path, gt: Any, dt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        evaluate_files(*written(tmp_path, gt, dt))
    assert "\n" not in str(raised.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    gt, dt = written(tmp_path, dataset(), [])
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        evaluate_files(gt, tmp_path / "absent.json")
    dt.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(UserError, match=r"dt\.json: is not text at byte 2"):
        evaluate_files(gt, dt)


def test_written_results_score_as_they_did(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [random_image(rng, 3, 8, 20) for _ in range(5)]
    truths, results = coco_files(samples, 3)
    gt, dt = written(tmp_path, truths, results)
    write_results(tmp_path / "ours.json", ((i, found) for i, (_, found) in enumerate(samples)), range(3))
    assert json.loads((tmp_path / "ours.json").read_text()) == results
    assert evaluate_files(gt, tmp_path / "ours.json").summary.coco == evaluate_files(gt, dt).summary.coco


def test_written_results_of_nothing_and_float32(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [], [1])
    assert json.loads(path.read_text()) == []
    boxes, scores = np.full((1, 4), 0.1, np.float32), np.ones(1, np.float32)
    write_results(path, [("a", ImageDetections(boxes, scores, np.zeros(1, np.int64)))], ["cat"])
    (row,) = json.loads(path.read_text())
    assert row == {"image_id": "a", "category_id": "cat", "bbox": [float(np.float32(0.1))] * 4, "score": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_json_holds_all_numbers(tmp_path: Path) -> None:
    summary = evaluate_files(*written(tmp_path, dataset(), [result()])).summary
    numbers = json.loads(json.dumps(to_json(summary, ["one", "three"]), allow_nan=False))
    assert numbers["coco"] == pytest.approx(dict(summary.coco))
    assert numbers["mAP50"] == pytest.approx(1)
    assert [(c["class"], c["name"], c["instances"]) for c in numbers["per_class"]] == [
        (0, "one", 0),
        (1, "three", 1),
    ]
    assert "name" not in to_json(summary)["per_class"][0]


def test_the_table_of_classes_shows_dashes_where_there_is_nothing(tmp_path: Path) -> None:
    summary = evaluate_files(*written(tmp_path, dataset(), [result()])).summary
    header, *lines = (line.split() for line in format_classes(summary, ["one", "a long name"]).splitlines())
    assert header == ["class", "images", "boxes", "P", "R", "mAP50", "mAP50-95"]
    assert lines == [
        ["all", "2", "1", *["1.000"] * 4],
        ["one", "0", "0", *"----"],
        ["a", "long", "name", "1", "1", *["1.000"] * 4],
    ]
