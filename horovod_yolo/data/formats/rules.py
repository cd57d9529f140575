"""How labels are read, beyond what their files say."""

from __future__ import annotations

from dataclasses import dataclass

CURRENT = 2
FIRST = 1


@dataclass(frozen=True)
class LabelRules:
    """What a run reads its labels by; a resumed run keeps those it began under.

    Attributes:
        class_map: (name in the files, name of ours or "" to leave it out).
        skip_bad_classes: leave rows out whose class is none of ours, instead of an error.
        keypoints: how many points follow the box of a row, and numbers a point; None: there are none.
        version: FIRST are those of the first release: classes by position where no name agrees, bad classes
            skipped, images of bad rows alone kept as background, labels looked for in one place.
    """

    class_map: tuple[tuple[str, str], ...] = ()
    skip_bad_classes: bool = False
    keypoints: tuple[int, int] | None = None
    version: int = CURRENT

    @property
    def first_release(self) -> bool:
        """Whether a run began before these rules were written."""
        return self.version == FIRST


@dataclass(frozen=True)
class Numbering:
    """Which class a number of the label files is: ``data.yaml`` may list other names than the model has."""

    names: tuple[str, ...]  # of the numbers
    ids: tuple[int | None, ...]  # class of each; None: its objects are left out
