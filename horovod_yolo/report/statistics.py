"""The page of a data set: what its labels are like, split by split, and some of its pictures."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.data.annotations import Annotations
from horovod_yolo.report.page import cards, figure, number, table, write_page
from horovod_yolo.report.plots import COLOURS, figure_file, plain_label

MOST_BARS = 30  # classes
_BINS = 30
_CELLS = 24  # of the map of centres, along a side
_INCHES = (4.6, 3.1)


class Picture(NamedTuple):
    """A picture with its boxes drawn."""

    name: str
    jpeg: bytes


def write_statistics(
    path: Path, data: Path, splits: Mapping[str, Annotations], pictures: Sequence[Picture]
) -> None:
    """Write the page, complete or not at all; it needs no other file and no network.

    Args:
        path: of the page.
        data: the ``data.yaml``.
        splits: annotations by split; all have the same classes.
        pictures: to show.

    Raises:
        OSError: the disk is full, for one.
    """
    names = next(iter(splits.values())).names
    with tempfile.TemporaryDirectory() as folder:
        plots = "\n".join(_plots(splits, names, Path(folder)))
        sections = [
            *(_cards(split, of) for split, of in splits.items()),
            f'<h2>Boxes and images</h2>\n<div class="plots">{plots}</div>',
            _class_table(splits, names),
            _gallery(pictures),
        ]
    write_page(path, "Label statistics", str(data), sections)


def _cards(split: str, of: Annotations) -> str:
    single = ~of.crowd
    counts = _boxes_an_image(of)
    facts: dict[str, Any] = {
        "images": len(of),
        "boxes": int(single.sum()),
        "images without": int((counts == 0).sum()),
        "boxes an image, mean": float(counts.mean()),
        "boxes an image, most": int(counts.max()),
        "median box side": f"{100 * float(np.median(_sides(of))):.1f} %" if single.any() else "–",
    }
    if crowds := int(of.crowd.sum()):
        facts["crowds"] = crowds
    return f"<h2>{escape(split)}</h2>\n{cards(facts, 'facts')}"


def _image_of_object(of: Annotations) -> NDArray[np.int64]:
    """(boxes,) the image of each object that is no crowd."""
    return np.repeat(np.arange(len(of)), of.counts)[~of.crowd]


def _boxes_an_image(of: Annotations) -> NDArray[np.int64]:
    return np.bincount(_image_of_object(of), minlength=len(of))


def _of_image(of: Annotations) -> NDArray[np.float64]:
    """(boxes, 4) boxes that are no crowds, as shares of the image's width and height."""
    images = _image_of_object(of)
    sizes = np.stack((of.widths, of.heights), axis=1).astype(np.float64)[images]
    return of.boxes_xyxy[~of.crowd] / np.tile(sizes, 2)


def _sides(of: Annotations) -> NDArray[np.float64]:
    """(boxes,) root of a box's share of the image's area."""
    boxes = _of_image(of)
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _of_class(of: Annotations) -> NDArray[np.int64]:
    return np.bincount(of.classes[~of.crowd], minlength=len(of.names))


def plot_labels(splits: Mapping[str, Annotations], names: Sequence[str], out: Path) -> None:
    """Draw what the labels of some splits, with the same classes, are like as one PNG."""
    panels = _panels(splits, names)
    across = 3
    down = math.ceil(len(panels) / across)
    with figure_file(out, (_INCHES[0] * across, _INCHES[1] * down), names) as drawn:
        for axis, (title, draw) in zip(drawn.subplots(down, across).flat, panels.items(), strict=True):
            draw(axis)
            axis.set_title(title)


def _plots(splits: Mapping[str, Annotations], names: Sequence[str], folder: Path) -> Iterator[str]:
    """Figures, each small enough for the width of a telephone."""
    path = folder / "plot.png"
    bars = (_INCHES[0], 1.2 + 0.22 * min(len(names), MOST_BARS))
    for place, (title, draw) in enumerate(_panels(splits, names).items()):
        with figure_file(path, _INCHES if place else bars, names) as drawn:
            draw(drawn.subplots())
        yield figure(title, path)


def _panels(splits: Mapping[str, Annotations], names: Sequence[str]) -> dict[str, Callable[[Any], None]]:
    """What is drawn, on an axis each, by title."""

    def histogram(label: str, value: Callable[[Annotations], NDArray[Any]]) -> Callable[[Any], None]:
        values = {split: value(of) for split, of in splits.items()}
        return partial(_draw_histogram, values=values, label=label)

    return {
        "Boxes by class": partial(_draw_classes, splits=splits, names=names),
        "Boxes an image": histogram("boxes", _boxes_an_image),
        "Size of boxes": histogram("root of the share of the image, %", lambda of: 100 * _sides(of)),
        "Shape of boxes": histogram("log2(width / height), pixels", lambda of: np.log2(_shapes(of))),
        "Centres of boxes, all splits": partial(_draw_centres, splits=splits),
        "Sizes of images": partial(_draw_sizes, splits=splits),
    }


def _shapes(of: Annotations) -> NDArray[np.float64]:
    boxes = of.boxes_xyxy[~of.crowd].astype(np.float64)
    return (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])


def _draw_classes(axis: Any, splits: Mapping[str, Annotations], names: Sequence[str]) -> None:
    """Bars of the most frequent classes, as shares of each split: so splits of unlike size compare."""
    boxes = {split: _of_class(of) for split, of in splits.items()}
    order = np.argsort(-sum(boxes.values()), kind="stable")[:MOST_BARS]
    height, rows = 0.8 / len(splits), np.arange(len(order))
    for k, (split, of_class) in enumerate(boxes.items()):
        shares = 100 * of_class[order] / max(of_class.sum(), 1)
        axis.barh(rows + k * height, shares, height, color=COLOURS[k], label=split)
    axis.set_yticks(rows + 0.4 - height / 2, [plain_label(names, int(c)) for c in order])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    more = f", the {MOST_BARS} most frequent of {len(names)}" if len(names) > MOST_BARS else ""
    axis.set_xlabel(f"share of the split's boxes, %{more}")
    axis.legend()


def _draw_histogram(axis: Any, values: Mapping[str, NDArray[Any]], label: str) -> None:
    """Lines of shares, on the same bins for all splits; few whole numbers get a bin each."""
    axis.set(xlabel=label, ylabel="share of the split")
    joined = np.concatenate(list(values.values()))
    if not len(joined):
        return
    low, high = float(joined.min()), float(joined.max())
    few = joined.dtype.kind == "i" and high - low < _BINS
    edges = np.arange(low - 0.5, high + 1) if few else np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    for k, (split, numbers) in enumerate(values.items()):
        shares = np.histogram(numbers, edges)[0] / max(len(numbers), 1)
        axis.stairs(shares, edges, color=COLOURS[k], label=split, linewidth=1.6)
    axis.legend()


def _draw_centres(axis: Any, splits: Mapping[str, Annotations]) -> None:
    boxes = np.concatenate([_of_image(of) for of in splits.values()])
    x, y = (boxes[:, [0, 1]] + boxes[:, [2, 3]]).T / 2
    counts = np.histogram2d(y, x, _CELLS, ((0, 1), (0, 1)))[0]
    axis.imshow(counts, cmap="Blues", extent=(0, 100, 100, 0), interpolation="nearest")
    axis.grid(visible=False)
    axis.set(xlabel="% of the width", ylabel="% of the height")


def _draw_sizes(axis: Any, splits: Mapping[str, Annotations]) -> None:
    for k, (split, of) in enumerate(splits.items()):
        kinds, images = np.unique(np.stack((of.widths, of.heights)), axis=1, return_counts=True)
        area = 12 + 200 * images / len(of)
        axis.scatter(*kinds, s=area, color=COLOURS[k], alpha=0.6, linewidths=0, label=split)
    axis.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    legend = axis.legend(loc="lower right")
    for handle in legend.legend_handles:
        handle.set_sizes([30])


def _class_table(splits: Mapping[str, Annotations], names: Sequence[str]) -> str:
    header = ["class", *(f"{word} in {split}" for split in splits for word in ("boxes", "images"))]
    columns = []
    for of in splits.values():
        pairs = np.stack((_image_of_object(of), of.classes[~of.crowd].astype(np.int64)))
        with_it = np.bincount(np.unique(pairs, axis=1)[1], minlength=len(names))
        columns += [_of_class(of), with_it]
    lines = [
        [escape(name), *(number(int(column[class_id])) for column in columns)]
        for class_id, name in enumerate(names)
    ]
    return table("Classes", header, lines)


def _gallery(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    shown = "\n".join(
        f'<figure><img alt="{escape(name)} with its boxes" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, jpeg in pictures
    )
    return f'<h2>Pictures</h2>\n<div class="pictures">{shown}</div>'
