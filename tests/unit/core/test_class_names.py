"""Lists of class names that meet: by name, never by position, both lists shown where they do not fit."""

from __future__ import annotations

import unicodedata

import pytest

from horovod_yolo.core.class_names import find_names, match_names, without_own
from horovod_yolo.core.errors import UserError


@pytest.mark.parametrize(
    ("theirs", "ours", "ids"),
    [
        (["cat", "dog"], ["cat", "dog"], (0, 1)),
        (["Dog", "CAT "], ["cat", "dog"], (1, 0)),
        (["traffic light"], ["Traffic  Light"], (0,)),
        (["trafficlight"], ["Traffic Light"], (0,)),
        (["caf\u00e9"], [unicodedata.normalize("NFD", "Caf\u00e9")], (0,)),
        (["Cat", "cat"], ["cat", "Cat"], (1, 0)),
        (["CAT"], ["cat", "Cat"], (None,)),
        (["x", "x"], ["x"], (0, 0)),
        (["x"], ["x", "x"], (0,)),
        ([], ["x"], ()),
    ],
)
def test_names_are_found_whatever_their_case_and_spaces(
    theirs: list[str], ours: list[str], ids: tuple[int | None, ...]
) -> None:
    assert find_names(theirs, ours).ids == ids


@pytest.mark.parametrize(
    ("theirs", "ours", "ids", "left_out", "absent"),
    [
        (["a", "b", "c"], ["b"], (None, 0, None), ("a", "c"), ()),
        (["b"], ["a", "b"], (1,), (), ("a",)),
        (["b", "a"], ["a", "b"], (1, 0), (), ()),
    ],
)
def test_one_list_may_be_a_part_of_the_other(
    theirs: list[str],
    ours: list[str],
    ids: tuple[int | None, ...],
    left_out: tuple[str, ...],
    absent: tuple[str, ...],
) -> None:
    match = match_names(theirs, ours, meeting="m")
    assert (match.ids, match.left_out, match.absent) == (ids, left_out, absent)
    assert not match.is_identity
    assert match_names(ours, ours, meeting="m").is_identity


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["cat", "dog"], ["cats", "dogs"]),
        (["cat", "dog"], ["cat", "dogs"]),
        (["x"], ["cat", "dog"]),
        ([], ["x"]),
    ],
)
def test_strangers_on_both_sides_are_an_error_that_shows_both_lists(
    theirs: list[str], ours: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        match_names(theirs, ours, meeting="the lists", where="f")
    message = str(caught.value)
    assert message.startswith("f: the lists ")
    assert all(repr(name) in message for name in [*theirs, *ours])
    assert "--class-map OLD=NEW" in message


def test_strangers_without_objects_do_not_matter() -> None:
    assert match_names(["cat", "head"], ["cat", "dog"], meeting="m", used={"cat"}).ids == (0, None)


def test_a_class_map_says_which_is_which() -> None:
    theirs, ours = ["Katze", "Hund", "Maus"], ["dog", "cat"]
    match = match_names(theirs, ours, {"katze": "Cat", "hund": "dog", "Maus": ""}, meeting="m")
    assert (match.ids, match.left_out) == ((1, 0, None), ())
    assert match_names(["a"], ["x"], {"a": ""}, meeting="m").ids == (None,)
    with pytest.raises(UserError, match="--class-map Hund=dgo: 'dgo' is none of 'dog', 'cat'"):
        find_names(theirs, ours, {"Hund": "dgo"})
    assert find_names(["dog"], ours, {"not there": "anything"}).ids == (0,)


def test_equal_lists_are_the_same_classes_though_a_name_is_there_twice() -> None:
    assert find_names(["x", "x"], ["x", "x"]).is_identity


def test_a_map_of_labels_does_not_exchange_the_classes_of_models() -> None:
    class_map = {"cat": "dog", "Dog": "cat", "Hund": "dog", "cow": ""}
    assert without_own(class_map, ["cat", "dog"]) == {"Hund": "dog", "cow": ""}
