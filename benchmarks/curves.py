"""docs/scaling.png and its table: efficiency of yolov5l on up to 4,096 GPUs, by `horovod_yolo.planner`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib
from common import ROOT, page, publish

from horovod_yolo.planner.plan import Question, make_plan

matplotlib.use("Agg")
from matplotlib import pyplot

DOCUMENT = ROOT / "docs" / "scaling.md"
GPUS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
IN_TABLE = [8, 64, 512, 4096]
GPUS_A_NODE, IMAGES_A_GPU = 8, 32
QUESTION = Question(
    cfg="yolov5l",
    batch=IMAGES_A_GPU,
    nodes=1,
    gpus_per_node=1,
    images=118_287,
    epochs=300,
    device="h100",
    latency=5e-6,
)
NETWORKS = {"200 Gbit/s": 25e9, "25 Gbit/s": 25e9 / 8, "10 Gbit/s": 10e9 / 8}
WAYS = {"ring": "--", "tree": ":", "hierarchical": "-"}


def efficiency(gpus: int, bandwidth: float, way: str, images: int = IMAGES_A_GPU) -> float:
    """Of a GPU among so many, eight a node, by one way to sum."""
    here = min(gpus, GPUS_A_NODE)
    question = replace(
        QUESTION,
        batch=images * gpus,
        nodes=gpus // here,
        gpus_per_node=here,
        bandwidth=bandwidth,
        allreduce=way,
    )
    return make_plan(question).efficiency.value


def draw() -> None:
    """Write the picture and the table."""
    found = {
        network: {way: [efficiency(gpus, speed, way) for gpus in GPUS] for way in WAYS}
        for network, speed in NETWORKS.items()
    }
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for number, (network, ways) in enumerate(found.items()):
        for way, style in WAYS.items():
            axes.plot(GPUS, ways[way], style, color=f"C{number}", label=f"{network}, {way}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS], rotation=45)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("GPUs, 8 a node")
    axes.set_ylabel("efficiency of a GPU, assumed")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncol=3, loc="lower left")
    figure.tight_layout()
    picture = page(ROOT / "docs" / "scaling.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    pyplot.close(figure)
    publish("scaling-curves", {"gpus": GPUS, "efficiency": found}, table_of(found), DOCUMENT)


def table_of(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        f"| network of a node | {' | '.join(f'{gpus:,} GPUs' for gpus in IN_TABLE)} |",
        "|---|" + "---|" * len(IN_TABLE),
    ]
    places = [GPUS.index(gpus) for gpus in IN_TABLE]
    for network, ways in found.items():
        cells = [best_of(ways, place) for place in places]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    about = "yolov5l, 640 px, fp16, 32 images a GPU, H100 by its data sheet, 5 us: assumed, not measured."
    return "\n".join([*lines, "", about])


def best_of(ways: dict[str, list[float]], place: int) -> str:
    best: Any = max(ways, key=lambda way: ways[way][place])
    return f"{ways[best][place]:.0%} ({best})"
