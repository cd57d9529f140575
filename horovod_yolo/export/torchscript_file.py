"""A model as TorchScript, and such a file as a function."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.types import Floats
from horovod_yolo.export.about import About
from horovod_yolo.export.checking import example_inputs
from horovod_yolo.export.network import ExportedNetwork
from horovod_yolo.export.running import ExportedFile, Sides, refused
from horovod_yolo.export.script_vetting import vetted
from horovod_yolo.models.detector import Detector

ABOUT = "about.json"
_DAMAGE = (
    *(RuntimeError, ValueError, SyntaxError, MemoryError, EOFError, KeyError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


def torchscript_bytes(model: Detector, about: About) -> bytes:
    """The content of the file: what the model does with the input that ``about`` says."""
    net = ExportedNetwork(model, half=about.precision == "fp16")
    buffer = io.BytesIO()
    with _quietly():
        images = next(example_inputs(about))
        traced = torch.jit.trace(net, (images,), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer, _extra_files={ABOUT: json.dumps(about.as_texts())})
    return buffer.getvalue()


class TorchScriptRunner:
    """See `Runner`."""

    def __init__(self, file: ExportedFile) -> None:
        """Make it ready, on the CPU: a trace has its device in it.

        Raises:
            UserError: it is damaged, or its program does more than ours do.
        """
        self._path = file.path
        extra = {ABOUT: ""}
        try:
            content = io.BytesIO(vetted(file.parts[0]))
            with _quietly():
                loaded = torch.jit.load(content, "cpu", extra)  # type: ignore[no-untyped-call]
            self._module = loaded.eval()
            self.texts: Mapping[str, str] = _texts(extra[ABOUT])
        except _DAMAGE as error:
            raise refused(file.path, error) from None
        self.sides = _sides(self.texts)

    @torch.no_grad()
    def __call__(self, images: Floats) -> tuple[Floats, ...]:
        """See `Runner`.

        Raises:
            UserError: the file cannot be computed.
        """
        try:
            found = self._module(torch.from_numpy(images))
        except RuntimeError as error:
            raise refused(self._path, error) from None
        outputs = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(one, torch.Tensor) for one in outputs):
            raise UserError("its outputs are no tensors", where=self._path, fix="export it again")
        return tuple(one.numpy() for one in outputs)


def _texts(text: str | bytes) -> dict[str, str]:
    given = json.loads(text) if text else {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ValueError("its metadata are no texts")
    return given


def _sides(texts: Mapping[str, str]) -> Sides:
    """A static file computes other sizes too, but not what the model does: a trace has its sizes in it."""
    about = About.of_texts(texts, "")
    return (about.batch, *about.imgsz) if about and about.batch else (0, 0, 0)


@contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch's own affairs are left out: that TorchScript is old, and that a trace has sizes in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        yield
