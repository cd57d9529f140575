"""A model as what maps inputs to detections: wanted classes, suppression across classes, three views."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Decoded, Detections
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction import predict as module
from horovod_yolo.prediction.network import VIEWS, Network
from horovod_yolo.prediction.predict import Frame, Sizes, detect
from horovod_yolo.prediction.result import Origin
from tests.helpers.tiny import tiny_detector

DOUBLE = Precision(device=torch.device("cpu"), dtype=torch.float64)
LOW = Thresholds(confidence=1e-6, iou=0.5, most=50, multi_label=False)


def inputs(count: int = 2, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 96, 3), dtype=np.uint8)


def test_it_is_what_the_model_detects() -> None:
    model, images = tiny_detector().eval(), inputs()
    found = Network(model, DOUBLE, LOW)(images)
    with torch.no_grad():
        predictions = model(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255)
    for one, other in zip(found, model.detect(predictions, LOW), strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy) and len(one) > 3


def test_a_box_counts_for_its_best_class_only() -> None:
    """As in YOLOv5: a box whose best class is not wanted is not called by its second best."""
    model, images = tiny_detector(), inputs()
    everything = Network(model, DOUBLE, LOW)(images)
    assert {0, 2} == {int(c) for found in everything for c in found.classes}
    some = Network(model, DOUBLE, LOW, classes=(0, 1))(images)
    for all_found, found in zip(everything, some, strict=True):
        assert set(found.classes.tolist()) == {0}
        kept = all_found.classes == 0
        number = int(kept.sum())
        assert torch.equal(all_found.boxes_xyxy[kept], found.boxes_xyxy[:number])
        assert torch.equal(all_found.classes[kept], found.classes[:number])


class Blob(nn.Module):
    """Finds the brightest place: a box of 10 pixels around it, of class 1."""

    num_classes, strides, layer = 2, (16,), 1

    def forward(self, images: Tensor) -> Tensor:
        return images

    def decode(self, images: Tensor) -> Decoded:
        columns = images.shape[3]
        places = images.mean(dim=1).flatten(1).argmax(dim=1)
        x, y = places % columns + 0.5, places // columns + 0.5
        boxes = torch.stack((x - 5, y - 5, x + 5, y + 5), dim=1)[:, None]
        scores = torch.tensor([0.1, 0.9]).expand(len(images), 1, 2)
        return Decoded(boxes, scores)


class OneBlob(Detector):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.head = Blob()  # type: ignore[assignment]
        self.strides = (16,)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2] % 16 == images.shape[3] % 16 == 0
        self.seen = [*getattr(self, "seen", []), tuple(images.shape[2:])]
        return images


def test_three_views_find_the_same_place() -> None:
    """Scaled, mirrored and padded back and forth, the box stays where the bright place is."""
    spot = np.zeros((96, 160, 3), np.uint8)
    cv2.circle(spot, (122, 32), 5, (255, 255, 255), -1)
    image = cv2.GaussianBlur(spot, (0, 0), 2)[None]
    model = OneBlob()
    apart = Thresholds(confidence=0.5, iou=1.0, most=9, multi_label=False)
    (found,) = Network(model, DOUBLE, apart, augment=True)(image)
    assert model.seen == [(96, 160), (80, 144), (64, 112)]
    assert len(found) == len(VIEWS) and set(found.classes.tolist()) == {1}
    centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    assert (centres - torch.tensor([122.5, 32.5])).abs().max() < 1.5
    (together,) = Network(
        model, DOUBLE, Thresholds(confidence=0.5, iou=0.3, most=9, multi_label=False), augment=True
    )(image)
    assert len(together) == 1


@pytest.mark.parametrize(("keep", "limit", "most"), [(True, 3000, 5), (False, 3000, 8), (True, 10**9, 8)])
def test_images_that_wait_are_bounded_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch, keep: bool, limit: int, most: int
) -> None:
    """No shape comes twice, so nothing fills a batch of two, and images of about 900 bytes wait."""
    monkeypatch.setattr(module, "MOST_BYTES_WAITING", limit)
    taken = done = waited = 0

    def frames() -> object:
        nonlocal taken
        for place in range(20):
            taken += 1
            size = (20 - place // 2, 16 + 16 * (place % 2), 3)
            yield Frame(np.zeros(size, np.uint8), Origin(source=place))

    class Find:
        stride = 1

        def __call__(self, inputs: NDArray[np.uint8]) -> list[Detections]:
            nonlocal done, waited
            waited = max(waited, taken - done)
            done += len(inputs)
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)) for _ in inputs]

    results = list(detect(frames(), Find(), Sizes(32, batch=2), {}, keep=keep))  # type: ignore[arg-type]
    assert [result.origin.source for result in results] == list(range(20))
    assert all((result.image is not None) == keep for result in results)
    assert waited == most
