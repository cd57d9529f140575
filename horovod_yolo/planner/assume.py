"""What is assumed of a machine that nobody has measured.

The constants of a step come from seven lines of docs/benchmarks.md (one NVIDIA H200, yolov5n and yolov5s, 640
pixels, 64 images, channels last), by least squares: they give these lines again to 12 %. For another GPU its
data sheet's peaks take the place of the H200's.
"""

from __future__ import annotations

from horovod_yolo.planner.devices import Device
from horovod_yolo.planner.timeline import Compute
from horovod_yolo.planner.workload import Workload

FIXED_S = 0.059  # of a step: matching, loss, optimizer, waits of the processor for the GPU
OF_PEAK_FLOPS = 2.6  # times as long as three forward passes at the peak
OF_PEAK_MEMORY = 4.0  # times as long as to move what the forward pass keeps once, at the peak
UPDATE_SHARE = 0.2  # of what is fixed
# What PyTorch takes beside weights and kept tensors, as a factor on these; the same lines are 1.10 to 1.32.
MEMORY_FACTOR = 1.2
CONTEXT_BYTES = 1e9  # CUDA's own, and NCCL's

LOADER_S = 0.021  # of a core of an AMD EPYC, for an image of 640 x 640 pixels made of four photographs
IMAGE_BYTES = 160e3  # of a file: the mean of COCO's train2017, 18 GB in 118,287 files
LOCAL_LATENCY_S = 20e-6  # between processes of a host on CPUs
LOCAL_BYTES_PER_S = 5e9


def compute_of(work: Workload, device: Device, precision: str, images: int) -> Compute:
    """A step of ``images`` on a GPU, by its data sheet."""
    kept = work.kept_bytes * bytes_factor(precision)
    flops_s = images * OF_PEAK_FLOPS * 3 * work.forward_flops / device.flops(precision)
    memory_s = images * OF_PEAK_MEMORY * kept / device.memory_bytes_per_s
    forward = (flops_s + memory_s) / 3 + FIXED_S * (1 - UPDATE_SHARE)
    return Compute(forward, (flops_s + memory_s) * 2 / 3, FIXED_S * UPDATE_SHARE)


def memory_of(work: Workload, precision: str, images: int) -> float:
    """Bytes of a rank that puts so many images through the network at once."""
    kept = images * work.kept_bytes * bytes_factor(precision)
    return work.state_bytes + MEMORY_FACTOR * kept + CONTEXT_BYTES


def loader_s(imgsz: int) -> float:
    """Seconds of a core for a training image."""
    return LOADER_S * (imgsz / 640) ** 2


def bytes_factor(precision: str) -> float:
    """Size of the tensors of the forward pass against float32."""
    return {"fp16": 0.5, "bf16": 0.5, "fp64": 2.0}.get(precision, 1.0)
