"""``--help``: every flag in a group that has a name, with one default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest

from horovod_yolo.assembly.search import PROJECT
from horovod_yolo.cli.tune import tune_parser
from horovod_yolo.cli.val import val_parser
from horovod_yolo.config.help import OF_PREDICTION, OF_TRAINING, OF_VALIDATION
from horovod_yolo.config.load import Parser, train_parser
from horovod_yolo.config.predict_flags import predict_parser

GROUPED = [
    (train_parser, OF_TRAINING, ()),
    (tune_parser, OF_TRAINING, ("search",)),
    (val_parser, OF_VALIDATION, ()),
    (predict_parser, OF_PREDICTION, ()),
]


def sections(parser: Parser) -> dict[str, str]:
    """The help's groups by title, each in one line of words."""
    found = re.split(r"^([a-z ]+):\n", parser.format_help(), flags=re.MULTILINE)
    return {title: " ".join(text.split()) for title, text in zip(found[1::2], found[2::2], strict=True)}


@pytest.mark.parametrize(("make", "groups", "before"), GROUPED)
def test_every_flag_stands_in_one_named_group(
    make: type[Parser], groups: Mapping[str, Sequence[str]], before: Sequence[str]
) -> None:
    parser = make()
    shown = sections(parser)
    assert list(shown) == ["options", *before, *groups]
    assert shown.pop("options") == "-h, --help show this help message and exit"
    stands = [action.dest for group in parser._action_groups[2:] for action in group._group_actions]
    assert sorted(stands) == sorted(action.dest for action in parser._actions if action.dest != "help")


def test_a_default_of_zero_is_shown_as_any_other() -> None:
    shown = {action.dest: action.help or "" for action in train_parser()._actions}
    for dest in ("seed", "close_mosaic", "micro_batch", "max_steps", "commit_every", "slices", "threads"):
        assert shown[dest].endswith(" (0)"), dest
    assert shown["label_smoothing"].endswith(" (0.0)") and shown["workers"].endswith(" (4)")


@pytest.mark.parametrize("make", [train_parser, tune_parser, val_parser, predict_parser])
def test_no_flag_shows_two_defaults_and_off_is_none(make: type[Parser]) -> None:
    for action in make()._actions:
        text = action.help or ""
        assert not re.search(r"\)\s*\([^)]*\)$", text), text
        assert not text.endswith(("(False)", "(True)", "()", "(None)")), text


def test_a_search_shows_its_own_folder() -> None:
    assert f"folder of the searches ({PROJECT})" in sections(tune_parser())["what a run leaves"]
