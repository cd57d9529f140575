"""A model as safetensors, its tensors by their published names."""

from __future__ import annotations

from horovod_yolo.export.about import About
from horovod_yolo.models.detector import Detector, published_names


def safetensors_bytes(model: Detector, about: About) -> bytes:
    """The content of the file: float32 tensors, and what ``about`` says as metadata."""
    from safetensors.torch import save

    names = published_names(model)
    weights = {
        name: value.detach().cpu().contiguous().clone()  # tensors that share memory would be refused
        for name, value in zip(names, model.state_dict().values(), strict=True)
    }
    return save(weights, {"format": "pt", **about.as_texts()})
