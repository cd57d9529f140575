"""``--portable-bits``: the same bits, whatever registers the libraries would have used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.doctor import probe
from horovod_yolo.process.portable_bits import (
    instruction_set,
    processor,
    require_portable_bits,
    variables,
)

NAME, FEATURES = processor()
# Tells a library that it is on a processor without AVX512, as AVX2 is the widest of many in use.
WEAKER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
COMPUTES = """
import hashlib, sys
from horovod_yolo.process.portable_bits import begin_again
begin_again(sys.argv)
import cv2, numpy, torch
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
images = torch.randn(2, 16, 40, 40, generator=rng, requires_grad=True)
weight = torch.randn(32, 16, 3, 3, generator=rng, requires_grad=True)
maps = torch.nn.functional.silu(torch.nn.functional.conv2d(images, weight, padding=1))
maps.square().mean().backward()
matrix = numpy.exp(images.detach().numpy().reshape(32, -1).astype("float64"))
pixels = (images.detach()[0, :3] * 50).permute(1, 2, 0).clamp(0, 255).byte().numpy()
turn = numpy.float32([[0.9, 0.1, 3], [-0.1, 1.1, 2]])
found = {
    "convolution": maps.detach(),
    "gradients": torch.cat((images.grad.flatten(), weight.grad.flatten())),
    "product": maps.detach().flatten(1) @ maps.detach().flatten(1).T,
    "numpy": matrix @ matrix.T,
    "cv2": cv2.warpAffine(cv2.resize(pixels, (111, 77)), turn, (64, 64)),
}
for name, numbers in found.items():
    print(name, hashlib.sha256(numpy.ascontiguousarray(numbers).tobytes()).hexdigest())
"""


def computed(*flags: str, **told: str) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if name not in variables(FEATURES)}
    command = [sys.executable, "-c", COMPUTES, *flags]
    done = subprocess.run(
        command, env={**here, **told}, capture_output=True, text=True, check=True, timeout=120
    )
    assert not done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.skipif("avx512bw" not in FEATURES, reason="a processor without AVX512 cannot tell")
def test_a_processor_with_avx512_computes_as_one_without() -> None:
    assert computed("--portable-bits") == computed("--portable-bits", **WEAKER)
    usual, weaker = computed(), computed(**WEAKER)
    assert {name for name, digest in usual.items() if weaker[name] != digest} >= {"convolution", "gradients"}


def test_a_process_that_was_not_started_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables(FEATURES):
        monkeypatch.delenv(name, raising=False)
    if "avx2" not in FEATURES:
        with pytest.raises(UserError, match="x86 processors with AVX2"):
            require_portable_bits()
        return
    with pytest.raises(
        UserError, match=r"not started for it.*on the command line.*ATEN_CPU_CAPABILITY='avx2'"
    ):
        require_portable_bits()
    require_portable_bits({**os.environ, **variables(FEATURES)})


def test_processors_are_read_as_linux_has_them(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some CPU: fast\nflags\t\t: fpu avx avx2 avx_vnni\n\n" * 2)
    assert processor(file) == ("Some CPU: fast", frozenset(("fpu", "avx", "avx2", "avx_vnni")))
    assert instruction_set(processor(file)[1]) == "avx_vnni"
    assert "OPENCV_CPU_DISABLE" not in variables(processor(file)[1])  # OpenCV would complain
    assert processor(tmp_path / "none")[1] == frozenset()
    assert probe.processor({}) == {"name": NAME, "instructions": instruction_set(FEATURES)}
