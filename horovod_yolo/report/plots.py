"""Pictures of a run: curves from ``results.csv``, precision and recall, images with their boxes.

matplotlib is imported on first use only: training itself does not need it. Figures are made without
pyplot, so that no display, global state or thread is involved.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.io.atomic import replacing
from horovod_yolo.io.fonts import dejavu, runs, shown_name

if TYPE_CHECKING:
    from horovod_yolo.metrics.summary import DetectionSummary

Rows = Sequence[Mapping[str, float]]
Boxes = NDArray[np.floating[Any]]

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = (
    "#2f6db5", "#d9822b", "#2f8f6b", "#b8405e", "#7a5cb0",
    "#8a6d3b", "#1c93a5", "#c2569b", "#7d8a20", "#56657a",
)  # fmt: skip
UNABLE = "the plots of a run are matplotlib's, which sets one letter after the other"
_STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
}
_MOST_NAMED_CLASSES = 10  # more lines are drawn grey, without a legend
_MOST_TICKS, _MOST_COUNTS = 40, 20  # classes of a confusion matrix with names, and with two digits
_CELL_INCHES, _CELLS_A_ROW, _MOST_SAMPLES = 3.2, 4, 16


def plot_results(rows: Rows, out: Path) -> None:
    """Draw the columns of ``results.csv`` over epochs as a PNG: losses, accuracy, learning rate, speed.

    Columns that are not there, and numbers that are not finite, are left out.
    """
    panels = _result_panels(rows)
    columns = min(4, max(len(panels), 1))
    lines = max(1, math.ceil(len(panels) / columns))
    with figure_file(out, (3.5 * columns, 2.6 * lines)) as figure:
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axis, (title, series) in zip(axes, panels.items(), strict=False):
            _draw_series(axis, title, series, rows)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        figure.supxlabel("epoch", color=FAINT, fontsize=9)
        if not panels:
            figure.text(0.5, 0.5, "no epoch was finished", ha="center", color=FAINT)


def plot_comparison(runs: Mapping[str, Rows], out: Path) -> None:
    """Draw what was reached and lost over the epochs of several runs as a PNG, a colour a run.

    Args:
        runs: rows of ``results.csv`` by name of the run.
        out: the PNG to write.
    """
    columns = list(dict.fromkeys(name for rows in runs.values() for row in rows for name in row))
    shown = [name for name in columns if name.startswith(("metrics/mAP", "train/"))] + ["images_per_s"]
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    with figure_file(out, (3.5 * across, 2.6 * down + 0.4), list(runs)) as figure:
        axes = list(figure.subplots(down, across, squeeze=False).flat)
        for axis, column in zip(axes, shown, strict=False):
            for colour, (name, rows) in zip(itertools.cycle(COLOURS), runs.items(), strict=False):
                points = [(row["epoch"], row[column]) for row in rows if column in row]
                _draw_line(axis, points, colour, _short(name))
            axis.set_title(column.rpartition("/")[2].replace("_", " "))
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        figure.supxlabel("epoch", color=FAINT, fontsize=9)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def plot_pr_curves(summary: DetectionSummary, names: Sequence[str], out: Path) -> None:
    """Draw precision over recall and F1 over confidence as a PNG: a line a class at IoU 0.5, and the mean."""
    present = [c.class_id for c in summary.per_class if c.instances]
    curves = summary.curves
    with figure_file(out, (10, 4.2), names) as figure:
        left, right = figure.subplots(1, 2)
        _draw_classes(left, curves.recall, curves.precision_at_recall, present, names)
        _draw_classes(right, curves.confidence, curves.f1, present, names)
        left.set(
            title=f"Precision and recall  (mAP50 {summary.map50:.3f})", xlabel="recall", ylabel="precision"
        )
        right.set(title="F1 and confidence", xlabel="confidence", ylabel="F1")
        if present:
            right.axvline(summary.confidence, color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
            right.annotate(
                f"best at {summary.confidence:.2f}",
                (summary.confidence, 1.0),
                xytext=(4, -2),
                textcoords="offset points",
                color=FAINT,
                fontsize=8,
                va="top",
            )
        if present:
            figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")


def plot_confusion(matrix: NDArray[np.int64], names: Sequence[str], out: Path) -> None:
    """Draw which classes are taken for which as a PNG: shares of each column, the objects of a class.

    Args:
        matrix: (C + 1, C + 1) counts: a row for what was found, a column for what is there, background last.
        names: of the C classes.
        out: the PNG to write.
    """
    kinds = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=0), 1)
    side = min(4 + 0.35 * kinds, 14)
    with figure_file(out, (side, side), names) as figure:
        axis = figure.subplots()
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)
        axis.set(xlabel="labelled", ylabel="found", title="What is taken for what (shares of a column)")
        if kinds <= _MOST_TICKS:
            labels = [*(plain_label(names, i) for i in range(kinds - 1)), "background"]
            axis.set_xticks(range(kinds), labels, rotation=90)
            axis.set_yticks(range(kinds), labels)
        for row, column in np.argwhere(matrix) if kinds <= _MOST_TICKS else ():
            share = shares[row, column]
            colour = "white" if share > 0.5 else INK
            text = f"{share:.2f}" if kinds <= _MOST_COUNTS else f"{share:.1f}".lstrip("0")
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def plot_samples(
    images: Sequence[NDArray[np.uint8]],
    boxes_xyxy: Sequence[Boxes],
    classes: Sequence[NDArray[np.int64]],
    scores: Sequence[NDArray[np.floating[Any]] | None] | None,
    names: Sequence[str],
    out: Path,
    *,
    titles: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Draw a grid of at most 16 images with their boxes as a PNG.

    Args:
        images: each (H, W, 3) RGB, of any sizes.
        boxes_xyxy: for each image (n, 4) in its pixels.
        classes: for each image (n,).
        scores: for each image (n,), shown in the label; none for labelled objects.
        names: of the classes.
        out: the PNG to write.
        titles: lines above the images.
        caption: a line below the images.
    """
    count = min(len(images), _MOST_SAMPLES)
    columns = max(1, min(_CELLS_A_ROW, math.ceil(math.sqrt(count))))
    lines = max(1, math.ceil(count / columns))
    with figure_file(out, (_CELL_INCHES * columns, _CELL_INCHES * lines), names) as figure:
        if caption:
            figure.supxlabel(caption, color=FAINT, fontsize=9)
        for place, axis in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
            axis.set_axis_off()
            if place < count:
                axis.imshow(images[place], interpolation="antialiased")
                labels = [plain_label(names, int(c)) for c in classes[place]]
                found = scores[place] if scores is not None else None
                if found is not None:
                    labels = [f"{label} {s:.2f}" for label, s in zip(labels, found, strict=True)]
                axis.set_title(titles[place] if titles else "", fontsize=8)
                _draw_boxes(axis, boxes_xyxy[place], classes[place], labels, images[place].shape[0])


@contextmanager
def _backend(name: str) -> Iterator[None]:
    """Inside, matplotlib may be imported: a notebook leaves its own backend's name to jobs it starts."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = name
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if before is not None:
            os.environ["MPLBACKEND"] = before


@contextmanager
def figure_file(out: Path, inches: tuple[float, float], names: Sequence[str] = ()) -> Iterator[Any]:
    """A figure that is written to ``out`` at the end, complete or not at all; ``names`` are of any script."""
    with _backend("Agg"):
        import matplotlib
    from matplotlib.figure import Figure

    fonts = {"font.family": _families(names)}
    with matplotlib.rc_context({**_STYLE, **fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts the font lacks
        figure = Figure(figsize=inches, dpi=110, layout="constrained")
        yield figure
        with replacing(out) as file:
            figure.savefig(file, format="png")


def _families(names: Sequence[str]) -> list[str]:
    """Fonts to look for a letter in, one after the other."""
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for face in dict.fromkeys(face for name in names for _, face in runs(name)):
        if face != dejavu():
            if not any(known.fname == str(face) for known in fontManager.ttflist):
                fontManager.addfont(face)
            families.append(FontProperties(fname=face).get_name())
    return families


def _result_panels(rows: Rows) -> dict[str, dict[str, str]]:
    """Title -> {label: column} for the columns that hold at least one finite number."""
    present = list(dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(value)))
    losses = {name.partition("/")[2]: None for name in present if name.startswith(("train/", "val/"))}
    panels = {
        loss.replace("_", " "): {"train": f"train/{loss}", "validation": f"val/{loss}"} for loss in losses
    }
    panels |= {
        "precision, recall": {"precision": "metrics/precision", "recall": "metrics/recall"},
        "mAP": {"0.5": "metrics/mAP_0.5", "0.5:0.95": "metrics/mAP_0.5:0.95"},
        "learning rate": {name[2:]: name for name in present if name.startswith("x/")},
        "images per second": {"": "images_per_s"},
        "seconds waited": {"for data": "data_wait_s", "for other ranks": "comm_wait_s"},
    }
    found = {
        title: {label: column for label, column in series.items() if column in present}
        for title, series in panels.items()
    }
    return {title: series for title, series in found.items() if series}


def _draw_series(axis: Any, title: str, series: Mapping[str, str], rows: Rows) -> None:
    for colour, (label, column) in zip(COLOURS, series.items(), strict=False):
        points = [(row.get("epoch", i), row[column]) for i, row in enumerate(rows) if column in row]
        _draw_line(axis, points, colour, label)
    axis.set_title(title)
    axis.margins(x=0.02)
    if title in ("mAP", "precision, recall"):
        axis.set_ylim(0, 1.05)
    elif title != "learning rate" and axis.dataLim.y1 > 0:
        axis.set_ylim(0, 1.05 * axis.dataLim.y1)  # room for the marker of the highest
    if len(series) > 1:
        axis.legend(loc="best")


def _draw_line(axis: Any, points: Sequence[tuple[float, float]], colour: str, label: str) -> None:
    """Finite values over epochs."""
    from matplotlib.ticker import MaxNLocator

    x, y = np.array([point for point in points if math.isfinite(point[1])]).reshape(-1, 2).T
    axis.plot(x, y, color=colour, label=label, marker="o" if len(x) < 15 else "", markersize=3)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _draw_classes(
    axis: Any, x: NDArray[np.float64], y: NDArray[np.float64], present: list[int], names: Sequence[str]
) -> None:
    few = len(present) <= _MOST_NAMED_CLASSES
    for place, class_id in enumerate(present):
        colour, label = (COLOURS[place], plain_label(names, class_id)) if few else ("#c3cad2", None)
        axis.plot(x, y[class_id], color=colour, label=label, linewidth=1.1)
    if present:
        axis.plot(x, y[present].mean(axis=0), color=INK, linewidth=2.4, label="all classes")
    axis.set(xlim=(0, 1), ylim=(0, 1.03))


def _draw_boxes(
    axis: Any, boxes_xyxy: Boxes, classes: NDArray[np.int64], labels: Sequence[str], height: int
) -> None:
    from matplotlib.patches import Rectangle

    for (left, top, right, bottom), class_id, label in zip(boxes_xyxy, classes, labels, strict=True):
        colour = COLOURS[int(class_id) % len(COLOURS)]
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4)
        )
        axis.text(
            left,
            top,
            label,
            color="white",
            fontsize=6,
            va="bottom" if top > 0.05 * height else "top",  # or the upper edge would cut the label off
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
        )


def plain_label(names: Sequence[str], class_id: int) -> str:
    """The name of a class, for matplotlib."""
    return _short(shown_name(class_id, names[class_id], UNABLE) if class_id < len(names) else str(class_id))


def _short(name: str) -> str:
    """A name that matplotlib shows as it is: ``$`` starts a formula, a leading ``_`` hides a legend entry."""
    short = name if len(name) <= 24 else name[:23] + "…"
    return (" " * short.startswith("_") + short).replace("$", r"\$")
