"""What the tests on a GPU share. They run on machines whose packages are not this project's to pin."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from horovod_yolo.data import augment
from horovod_yolo.data.digits import make_digits
from tests.helpers.short_runs import trained

HERE = Path(__file__).parent
DIGITS_HYP = HERE.parents[1] / "horovod_yolo" / "config" / "hyp.digits.anchor_based.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a GPU, loudly. Warnings of another torch than the pinned one are shown, not errors."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(
                pytest.mark.skipif(not torch.cuda.is_available(), reason="LOUD SKIP: no GPU here")
            )
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def without_albumentations() -> Iterator[None]:
    """Where the package is missing, its four rare augmentations are left out, and that is said."""
    patch = pytest.MonkeyPatch()
    if importlib.util.find_spec("albumentations") is None:
        warnings.warn("LOUD: albumentations is missing; training leaves its augmentations out", stacklevel=1)
        patch.setattr(augment, "albumentations_set", lambda rng, image: image)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def many_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.yaml`` of 96 + 24 images, enough to learn from."""
    folder = tmp_path_factory.mktemp("data") / "many"
    make_digits(folder, images=120, size=160, seed=2)
    return folder / "data.yaml"


@pytest.fixture(scope="session")
def weights(many_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``best.pt`` of a training on the GPU that is long enough to find digits."""
    size = {"imgsz": 160, "batch_size": 16, "epochs": 80, "workers": 4, "cache": "ram", "cos_lr": True}
    flags = {"hyp": str(DIGITS_HYP), "optimizer": "AdamW", "precision": "fp32", **size}
    return trained(many_digits, tmp_path_factory.mktemp("weights"), "0", **flags) / "weights" / "best.pt"
