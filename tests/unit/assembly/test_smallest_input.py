"""An input whose coarsest map may be one cell is refused, whatever the batch and the number of ranks."""

from __future__ import annotations

import pytest
import torch

from horovod_yolo.assembly.input_size import require_cells
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Batch, Targets
from horovod_yolo.training.scaling import scaled


def settings(imgsz: int, multi_scale: bool) -> TrainConfig:
    return TrainConfig(data="a.yaml", cfg="yolov5n", imgsz=imgsz, multi_scale=multi_scale)


def fewest_cells(imgsz: int, stride: int, multi_scale: bool) -> int:
    """Of the coarsest map, at the smallest factor that may be drawn."""
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = Batch(torch.zeros(0, 3, imgsz, imgsz), Targets(nothing, nothing, torch.zeros(0, 4)), nothing, ())
    smallest = scaled(batch, 0.5 if multi_scale else 1.0, stride).images
    return (smallest.shape[2] // stride) * (smallest.shape[3] // stride)


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("stride", [32, 64])
def test_what_is_refused_is_what_may_be_one_cell(stride: int, multi_scale: bool) -> None:
    for imgsz in range(stride, 6 * stride, stride):
        config = settings(imgsz, multi_scale)
        if fewest_cells(imgsz, stride, multi_scale) > 1:
            require_cells(config, stride, resumed=False)
            continue
        least = (3 if multi_scale else 2) * stride
        with pytest.raises(UserError, match=rf"--imgsz {imgsz} is too small.*use --imgsz {least} or more"):
            require_cells(config, stride, resumed=False)


def test_a_run_that_began_so_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    require_cells(settings(32, False), 32, resumed=True)
    assert "the run goes on as it began" in caplog.text
