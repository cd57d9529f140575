"""Bodies that are built from a layer table: rows of data, scaled to the size of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from horovod_yolo.models.blocks import Backbone, Conv, Neck, NumberedLayers, concat, upsample


@dataclass(frozen=True)
class Scale:
    """How a size of a model scales the layer table."""

    depth: float
    width: float
    most_channels: int  # before they are multiplied
    large: bool = False  # what rows have of their own on large sizes

    def channels(self, at_width_one: int) -> int:
        """Channels, rounded up to a multiple of 8."""
        return math.ceil(min(at_width_one, self.most_channels) * self.width / 8) * 8

    def repeats(self, at_depth_one: int) -> int:
        """Blocks in a row. One stays one."""
        return at_depth_one if at_depth_one == 1 else max(round(at_depth_one * self.depth), 1)


MakeBlock = Callable[[int, int, Scale], nn.Module]  # channels in and out, both scaled


@dataclass(frozen=True)
class Row:
    """A row of a layer table.

    Without a block it is an upsampling, or joins the maps of several rows.
    """

    channels: int = 0  # it gives, at width 1; 0: as many as come in
    make: MakeBlock | None = None
    inputs: tuple[int, ...] = ()  # row numbers; none: the row before


@dataclass(frozen=True)
class LayerTable:
    """A body. The rows of the neck follow those of the backbone."""

    backbone: tuple[Row, ...]
    neck: tuple[Row, ...]
    outputs: tuple[int, ...]  # rows that the head reads, finest first

    @property
    def rows(self) -> tuple[Row, ...]:
        """All of them; the head is the row after the last."""
        return self.backbone + self.neck

    @property
    def taps(self) -> tuple[int, ...]:
        """Rows of the backbone that the neck reads: those it names, and the last."""
        end = len(self.backbone)
        named = {number for row in self.neck for number in row.inputs if number < end}
        return tuple(sorted(named | {end - 1}))

    def bodies(self, scale: Scale) -> tuple[Backbone, Neck]:
        """Backbone and neck of a size, with new weights."""
        channels = self._channels(scale)
        return TableBackbone(self, scale, channels), TableNeck(self, scale, channels)

    def inputs(self, number: int) -> tuple[int, ...]:
        """Rows that feed a row; -1 are the images."""
        return self.rows[number].inputs or (number - 1,)

    def _channels(self, scale: Scale) -> dict[int, int]:
        """What each row gives, and the images under -1."""
        channels = {-1: 3}
        for number, row in enumerate(self.rows):
            given = sum(channels[i] for i in self.inputs(number))
            channels[number] = scale.channels(row.channels) if row.channels else given
        return channels


UP = Row()


def cat(*rows: int) -> Row:
    """The maps of these rows side by side."""
    return Row(inputs=rows)


def down(channels: int) -> Row:
    """A 3x3 convolution that halves the map."""
    return Row(channels, lambda c_in, c_out, _: Conv(c_in, c_out, 3, 2))


class _Rows:
    """Some rows of a table as the children of a module, named by their numbers."""

    def __init__(self, table: LayerTable, numbers: range) -> None:
        self.table = table
        self.numbers = numbers

    def add_to(self, layers: NumberedLayers, scale: Scale, channels: Mapping[int, int]) -> None:
        """Make the blocks."""
        published = {}
        for number in self.numbers:
            row = self.table.rows[number]
            if row.make is not None:
                c_in = sum(channels[i] for i in self.table.inputs(number))
                layers.add_module(str(number), row.make(c_in, channels[number], scale))
                published[str(number)] = number
        layers.published = published

    def run(
        self, layers: nn.Module, given: Mapping[int, Tensor], wanted: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Maps by row, of those that come in -> the maps of the wanted rows."""
        maps = dict(given)
        for number in self.numbers:
            row = self.table.rows[number]
            inputs = [maps[i] for i in self.table.inputs(number)]
            if row.make is not None:
                maps[number] = layers.get_submodule(str(number))(*inputs)
            else:
                maps[number] = concat(*inputs) if row.inputs else upsample(*inputs)
        return tuple(maps[number] for number in wanted)


class TableBackbone(Backbone):
    """Images (B, 3, H, W) -> the maps that the neck reads, finest first."""

    def __init__(self, table: LayerTable, scale: Scale, channels: Mapping[int, int]) -> None:
        super().__init__()
        self._rows = _Rows(table, range(len(table.backbone)))
        self._rows.add_to(self, scale, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Apply the rows."""
        return self._rows.run(self, {-1: images}, self._rows.table.taps)


class TableNeck(Neck):
    """The maps of the backbone -> those that the head reads, finest first."""

    def __init__(self, table: LayerTable, scale: Scale, channels: Mapping[int, int]) -> None:
        super().__init__()
        self._rows = _Rows(table, range(len(table.backbone), len(table.rows)))
        self._rows.add_to(self, scale, channels)
        self.channels = tuple(channels[row] for row in table.outputs)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Apply the rows."""
        table = self._rows.table
        return self._rows.run(self, dict(zip(table.taps, maps, strict=True)), table.outputs)
