"""GPUs as their makers' data sheets have them, and what is assumed of training on them."""

from __future__ import annotations

from dataclasses import dataclass

from horovod_yolo.core.errors import UserError
from horovod_yolo.planner.links import Link

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """One GPU. Peaks are of dense matrices."""

    name: str
    half_flops: float  # a second, in fp16 or bf16
    tf32_flops: float
    float_flops: float  # in fp32
    memory_bytes: float
    memory_bytes_per_s: float
    local: Link  # to the next GPU of the host, in each direction

    def flops(self, precision: str) -> float:
        """The peak in a number format."""
        return {"tf32": self.tf32_flops, "fp32": self.float_flops}.get(precision, self.half_flops)


def _gpu(
    name: str, half: float, tf32: float, fp32: float, memory: float, per_s: float, local: float
) -> Device:
    """TFLOP/s, GB, GB/s to memory and to the next GPU. NCCL's own model has 3.4 us a step over NVLink, 5.7 us
    over PCI Express (src/graph/tuning.cc of NCCL 2.10).
    """
    link = Link(3.4e-6 if local > PCI_EXPRESS_4 else 5.7e-6, local * GIGA)
    return Device(name, half * TERA, tf32 * TERA, fp32 * TERA, memory * GIGA, per_s * GIGA, link)


PCI_EXPRESS_4 = 32.0  # GB/s of 16 lanes
DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 2250, 1125, 75, 180, 7700, 900),
        _gpu("h200", 989, 494, 67, 141, 4800, 450),
        _gpu("h100", 989, 494, 67, 80, 3350, 450),
        _gpu("a100", 312, 156, 19.5, 80, 2039, 300),
        _gpu("v100", 125, 15.7, 15.7, 32, 900, 150),
        _gpu("p100", 21.2, 10.6, 10.6, 16, 732, 80),
        _gpu("l40s", 362, 183, 91.6, 48, 864, PCI_EXPRESS_4),
        _gpu("l4", 121, 60, 30.3, 24, 300, PCI_EXPRESS_4),
        _gpu("t4", 65, 8.1, 8.1, 16, 300, 16),
    )
}


def device(name: str) -> Device:
    """The GPU of a name such as ``h100``.

    Raises:
        UserError: it is not known.
    """
    try:
        return DEVICES[name.lower()]
    except KeyError:
        raise UserError(
            f"--device {name}: its speed is not known",
            fix=f"measure it with `horovod-yolo bench step --out FILE` and give --from FILE, or take one of "
            f"{', '.join(DEVICES)}",
        ) from None
