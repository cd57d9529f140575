"""Mistakes reach all ranks; a tenth of the images may be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import LostImage
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.lost_images import require_images


class Gathers(LocalCommunicator):
    """Stands for one of several ranks: what the others would say in ``allgather_object`` is given."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.size = len(answers)

    def allgather_object(self, value: Any) -> list[Any]:
        return list(self._answers)


@pytest.mark.parametrize(
    ("lost", "of", "ends"), [(1, 5, False), (2, 5, True), (10, 100, False), (11, 100, True)]
)
def test_a_tenth_of_the_images_may_be_lost(lost: int, of: int, ends: bool, tmp_path: Path) -> None:
    comm = Gathers([LostImage("a.jpg", "gone")], [LostImage("b.jpg", "cut"), LostImage("a.jpg", "gone")])
    if not ends:
        require_images(comm, lost, of, [], tmp_path)
        return
    with pytest.raises(
        UserError, match=rf"{lost} of {of} images .* a.jpg \(gone\), b.jpg \(cut\)\. .*--resume"
    ):
        require_images(comm, lost, of, [], tmp_path)
