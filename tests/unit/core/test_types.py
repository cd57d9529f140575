"""A batch in micro-batches is the batch."""

from __future__ import annotations

from dataclasses import replace

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


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_micro_batches_are_the_batch_again(count: int, first: int) -> None:
    batch = replace(a_batch(), first=first)
    pieces = batch.split(count)
    assert len(pieces) == count
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    for k, piece in enumerate(pieces):
        places = [i for i in range(5) if (first + i) % count == k]
        assert piece.images.equal(batch.images[places])
        assert piece.indices.equal(batch.indices[places])
        assert piece.letterboxes == tuple(batch.letterboxes[i] for i in places)
    for piece in pieces:
        for image, number, box in zip(
            piece.targets.image, piece.targets.classes, piece.targets.boxes_xywhn, strict=True
        ):
            at = int(number)  # the box's place in the whole batch
            assert box.equal(batch.targets.boxes_xywhn[at])
            assert piece.indices[image] == batch.indices[batch.targets.image[at]]
    assert sum(len(piece.targets.classes) for piece in pieces) == 5


def test_without_images_nothing_is_left_but_the_form() -> None:
    nothing = a_batch().without_images()
    assert nothing.images.shape == (0, 3, 1, 1) and len(nothing) == 0
    assert nothing.targets.boxes_xywhn.shape == (0, 4) and not len(nothing.targets.image)
    assert not len(nothing.indices) and nothing.letterboxes == ()
