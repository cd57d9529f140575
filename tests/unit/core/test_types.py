"""A batch in micro-batches is the batch."""

from __future__ import annotations

import pytest
import torch

from horovod_yolo.core.types import Batch, Letterbox, Targets


def a_batch() -> Batch:
    """Five images, of which the second has no box and the last has two."""
    boxes = torch.arange(20.0).view(5, 4)
    return Batch(
        images=torch.arange(5 * 3, dtype=torch.uint8).view(5, 3, 1, 1),
        targets=Targets(torch.tensor([0, 2, 3, 4, 4]), torch.arange(5), boxes),
        indices=torch.arange(5) + 100,
        letterboxes=tuple(Letterbox(i, i, 1.0, 1.0, 0.0, 0.0) for i in range(5)),
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_micro_batches_are_the_batch_again(count: int) -> None:
    batch = a_batch()
    pieces = batch.split(count)
    assert len(pieces) == count
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat([piece.images for piece in pieces]).equal(batch.images)
    assert torch.cat([piece.indices for piece in pieces]).equal(batch.indices)
    assert tuple(box for piece in pieces for box in piece.letterboxes) == batch.letterboxes
    for piece in pieces:
        for image, number, box in zip(
            piece.targets.image, piece.targets.classes, piece.targets.boxes_xywhn, strict=True
        ):
            at = int(number)  # the box's place in the whole batch
            assert box.equal(batch.targets.boxes_xywhn[at])
            assert piece.indices[image] == batch.indices[batch.targets.image[at]]
    assert sum(len(piece.targets.classes) for piece in pieces) == 5
