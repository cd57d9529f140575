"""Names in any script: which font has their letters, and what stands for them where none has."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import ImageFont

from horovod_yolo.io import fonts
from horovod_yolo.prediction import drawing
from horovod_yolo.report import plots

CACHES = (fonts._faces_here, fonts._face_of, fonts._say, fonts._probe, drawing._inked)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the only fonts beside DejaVu Sans."""
    for name, value in (("HOME", "home"), ("XDG_DATA_HOME", "own"), ("XDG_DATA_DIRS", "shared")):
        monkeypatch.setenv(name, str(tmp_path / value))
    folder = tmp_path / "own" / "fonts" / "truetype"
    folder.mkdir(parents=True)
    for cached in CACHES:
        cached.cache_clear()
    yield folder
    for cached in CACHES:
        cached.cache_clear()


def font_with(path: Path, letters: str) -> Path:
    """A font in which these letters are full squares, and all that it lacks is nothing."""
    pen = TTGlyphPen(None)
    for step, corner in enumerate(((0, 0), (0, 800), (800, 800), (800, 0))):
        (pen.lineTo if step else pen.moveTo)(corner)
    pen.closePath()
    names = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    square, nothing = pen.glyph(), TTGlyphPen(None).glyph()
    builder.setupGlyf({name: nothing if name == ".notdef" else square for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.parametrize(
    "name", ["cat", "Ünïcödé", "кот", "γάτα", "قطة", "חתול", "a b", "", "50 °C", "e\u0301"]
)
def test_what_dejavu_has_is_shown_without_a_word(
    here: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert fonts.shown_name(3, name) == unicodedata.normalize("NFC", name)
    assert {face for _, face in fonts.runs(name)} <= {fonts.dejavu()}
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "package"),
    [
        (("猫", "ねこ", "ネコ", "고양이"), "fonts-noto-cjk"),
        (("बिल्ली", "แมว"), "fonts-noto-core"),
        (("🛸 saucer",), "fonts-symbola"),
    ],
)
def test_where_no_font_has_the_letters_a_number_stands_for_the_class_and_one_line_says_so(
    here: Path, names: tuple[str, ...], package: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert [fonts.shown_name(*pair) for pair in enumerate(names)] == [f"#{n}" for n in range(len(names))]
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(f": apt-get install {package}")


def test_a_font_of_this_machine_is_found(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "Broken.ttf").write_bytes(b"no font")
    shutil.copy(fonts.dejavu(), here / "Dejavu-Bold.ttf")
    probe = font_with(here / "Probe.ttf", "猫犬")
    assert fonts.shown_name(0, "猫 cat") == "猫 cat"
    assert fonts.runs("猫 cat犬 1") == [
        ("猫 ", probe),
        ("cat", fonts.dejavu()),
        ("犬 ", probe),
        ("1", fonts.dejavu()),
    ]
    assert fonts.shown_name(1, "猫鳥") == "#1", "half a name is none"
    assert len(caplog.messages) == 1


def test_ordinary_fonts_come_before_bold_ones(here: Path) -> None:
    font_with(here / "A-Bold.ttf", "猫")
    regular = font_with(here / "B-Regular.ttf", "猫")
    assert [face for _, face in fonts.runs("猫")] == [regular]


def test_pictures_show_the_letters(here: Path) -> None:
    """A label is as high as any other. The font's squares are where its letters are, and nowhere else."""
    font_with(here / "Probe.ttf", "猫犬")
    latin, both = drawing._inked("cat", 20), drawing._inked("猫 cat 犬", 20)
    assert latin.shape[0] == both.shape[0]
    full = (both > 250).sum(axis=0) >= 14  # columns of squares: 0.8 of 20 pixels
    runs = np.flatnonzero(np.diff(full.astype(int), prepend=0) == 1)
    assert len(runs) == 2 and 28 <= full.sum() <= 34
    assert not ((latin > 250).sum(axis=0) >= 15).any()


def test_letters_that_join_are_joined_and_those_from_the_right_stand_there(here: Path) -> None:
    """Not one after the other, as Pillow sets them without FriBiDi."""
    assert not drawing.UNABLE, "this Pillow lays text out"
    for name in ("قطة", "חתול"):
        plain = ImageFont.truetype(fonts.dejavu(), 20, layout_engine=ImageFont.Layout.BASIC)
        joined = np.asarray(drawing._font(fonts.dejavu(), 20).getmask(name)).tobytes()
        assert joined != np.asarray(plain.getmask(name)).tobytes()
        assert fonts.shown_name(0, name, drawing.UNABLE) == name
    hebrew = drawing._font(fonts.dejavu(), 20).getmask("אב")
    backwards = ImageFont.truetype(fonts.dejavu(), 20, layout_engine=ImageFont.Layout.BASIC).getmask("בא")
    assert np.array_equal(np.asarray(hebrew), np.asarray(backwards))


@pytest.mark.parametrize("name", ["قطة", "חתול", "घड़ी", "น้ำ", "ᠮᠤᠤᠷ", "👨\u200d👩", "x\u0332"])
def test_who_sets_letters_one_after_the_other_shows_numbers_and_says_why(
    here: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    font_with(here / "Probe.ttf", "".join(dict.fromkeys(letter for letter in name if letter != "\u200d")))
    assert fonts.shown_name(0, name) == name
    assert not caplog.records
    assert fonts.shown_name(1, name, "it cannot") == fonts.shown_name(1, f"{name} 2", "it cannot") == "#1"
    assert fonts.shown_name(2, "ångström", "it cannot") == "ångström"
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(", and it cannot")


def test_a_name_from_the_right_in_two_fonts_is_a_number(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its pieces would stand in the wrong order; from the left they stand right."""
    font_with(here / "Probe.ttf", "ܫܘܢܪܐघड़ी")
    assert fonts.shown_name(0, "ܫܘܢܪܐ") == "ܫܘܢܪܐ"
    assert fonts.shown_name(0, "घड़ी cat") == "घड़ी cat"
    assert fonts.shown_name(0, "ܫܘܢܪܐ cat") == "#0"
    assert caplog.messages[0].endswith("and no font here has all of their letters")


def test_plots_look_there_too_and_show_numbers_for_what_they_would_write_backwards(
    here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    font_with(here / "Probe.ttf", "猫")
    names = ["猫", "cat", "قطة", "鳥"]
    image, boxes = np.zeros((60, 60, 3), np.uint8), [np.array([[10.0, 30.0, 50.0, 50.0]] * 4)]
    plots.plot_samples([image], boxes, [np.arange(4)], None, names, tmp_path / "a.png")
    assert plots._families(names) == ["DejaVu Sans", "Probe"]
    assert [plots.plain_label(names, n) for n in range(4)] == ["猫", "cat", "#2", "#3"]
    assert [message.rpartition(": ")[2].split(",")[0] for message in sorted(caplog.messages)] == [
        "apt-get install fonts-noto-cjk",
        "their names run from right to left",
    ]
