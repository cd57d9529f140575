"""Image files to pixels: what decodes, what is refused, and that the fast paths change nothing."""

from __future__ import annotations

import csv
import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageOps

from horovod_yolo.data import jpeg, read
from horovod_yolo.data.read import ImageError, MissingImageError, image_size, read_image, verify_image

EDGE_CASES = Path(__file__).resolve().parents[3] / "../shared/data/image-edge-cases"
ORIENTATION = 0x0112


def _edge_cases() -> list[dict[str, str]]:
    if not EDGE_CASES.is_dir():
        return []
    with (EDGE_CASES / "expected.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


CASES = _edge_cases()
EIGHT_BIT = [case for case in CASES if case["decodes"] == "yes" and not case["mode"].startswith("I")]
needs_edge_cases = pytest.mark.skipif(not CASES, reason=f"{EDGE_CASES} is not here")


def _photo(height: int, width: int) -> PIL.Image.Image:
    """Smooth, so that JPEG keeps it, and different in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width))
    return PIL.Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _encoded(image: PIL.Image.Image, kind: str, orientation: int | None = None) -> bytes:
    stream = io.BytesIO()
    extra = {}
    if orientation is not None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        extra["exif"] = exif
    image.save(stream, kind, **extra)
    return stream.getvalue()


@needs_edge_cases
@pytest.mark.parametrize("case", CASES, ids=[case["file"] for case in CASES])
def test_edge_cases_behave_as_expected_csv_says(case: dict[str, str]) -> None:
    path = EDGE_CASES / "files" / case["file"]
    if case["decodes"] != "yes":
        for decode in (read_image, verify_image):
            with pytest.raises(ImageError) as caught:
                decode(path)
            assert caught.value.path == path
            assert caught.value.reason
        return
    image = read_image(path)
    height, width = image.shape[:2]
    assert f"{width}x{height}" == case["size_after_transpose"]
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.flags.c_contiguous and image.flags.writeable
    assert image_size(path) == verify_image(path) == (height, width)


@needs_edge_cases
@pytest.mark.parametrize("case", EIGHT_BIT, ids=[case["file"] for case in EIGHT_BIT])
def test_pixels_are_those_of_the_plain_way(case: dict[str, str]) -> None:
    """Pillow alone: open, transpose, convert."""
    path = EDGE_CASES / "files" / case["file"]
    with warnings.catch_warnings(), PIL.Image.open(path) as image:
        warnings.simplefilter("ignore")
        # Transposed before the conversion: converting drops the EXIF of some formats.
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


@needs_edge_cases
def test_the_eight_orientations_show_one_scene() -> None:
    scenes = [read_image(EDGE_CASES / "files" / f"Landscape_{i}.jpg").astype(np.int16) for i in range(1, 9)]
    for other in scenes[1:]:
        # Each file carries its own number as a caption and its own JPEG noise: alike, not equal.
        assert np.abs(other - scenes[0]).mean() < 4
        assert np.abs(other[::-1] - scenes[0]).mean() > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_orientation_is_pillows_in_every_format(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(_encoded(_photo(40, 64), kind, orientation))
    with PIL.Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == verify_image(path) == expected.shape[:2]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("quality", [30, 95])
def test_fast_jpeg_path_equals_pillow(tmp_path: Path, mode: str, progressive: bool, quality: int) -> None:
    path = tmp_path / "image.jpg"
    _photo(97, 131).convert(mode).save(path, quality=quality, progressive=progressive)
    with PIL.Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 131)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_reduced_image_is_the_whole_one_averaged(
    tmp_path: Path, kind: str, height: int, width: int, orientation: int | None
) -> None:
    """Each pixel is that of its square of the upright image, also where the last ones are cut off."""
    path = tmp_path / "image"
    path.write_bytes(_encoded(_photo(height, width), kind, orientation))
    whole = read_image(path).astype(float)
    for n in (2, 4, 8):
        reduced = read_image(path, n, whole.shape[:2])
        rows, columns = (-(-side // n) for side in whole.shape[:2])
        assert reduced.shape == (rows, columns, 3) and reduced.flags.c_contiguous
        filled = np.pad(
            whole, ((0, rows * n - len(whole)), (0, columns * n - whole.shape[1]), (0, 0)), "edge"
        )
        averages = filled.reshape(rows, n, columns, n, 3).mean((1, 3))
        assert np.abs(reduced - averages).max() <= (12 if kind == "JPEG" else 1)
        assert np.abs(reduced - averages).mean() <= 1.2


def test_the_size_that_is_expected_is_the_files_not_the_reduced_ones(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        path = tmp_path / kind
        path.write_bytes(_encoded(_photo(62, 82), kind, 6))
        assert read_image(path, 2, (82, 62)).shape == (41, 31, 3)
        for n in (1, 2):
            with pytest.raises(ImageError, match="it is 62x82 now and was 61x81 in the scan"):
                read_image(path, n, (81, 61))


def test_pillow_is_asked_about_all_but_plain_jpegs(tmp_path: Path) -> None:
    """A header that is read here alone is complete, upright, of one picture and of eight bits."""
    plain = _encoded(_photo(40, 64), "JPEG")
    assert jpeg.plain_size(plain, 10) == (40, 64)
    assert jpeg.plain_size(_encoded(_photo(40, 64).convert("L"), "JPEG"), 10) == (40, 64)
    stream = io.BytesIO()
    _photo(40, 64).save(stream, "JPEG", progressive=True)
    progressive = stream.getvalue()
    assert jpeg.plain_size(progressive, 10) == (40, 64)
    frame = plain.index(b"\xff\xc0")
    strange = [
        progressive[:-2] + jpeg.SCAN * 10 + jpeg.END,  # too many scans
        _encoded(_photo(40, 64), "JPEG", 1),  # EXIF
        _encoded(_photo(40, 64).convert("CMYK"), "JPEG"),
        plain[:-1],
        plain[:2] + b"\xff\xe2\0\x08MPF\0ab" + plain[2:],
        plain[:frame] + plain[frame : frame + 19] + plain[frame:],  # two frames
        plain[: frame + 4] + b"\x0c" + plain[frame + 5 :],  # twelve bits
        plain[: frame + 5] + b"\0\0" + plain[frame + 7 :],  # no rows
        jpeg.START + jpeg.END,
        b"",
        *(plain[:cut] + jpeg.END for cut in range(frame + 12)),
    ]
    assert [jpeg.plain_size(content, 10) for content in strange] == [None] * len(strange)


@settings(max_examples=60)
@given(cut=st.integers(1, 2000), progressive=st.booleans())
def test_a_jpeg_cut_off_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, cut: int, progressive: bool
) -> None:
    stream = io.BytesIO()
    _photo(120, 160).save(stream, "JPEG", progressive=progressive)
    whole = stream.getvalue()
    path = tmp_path_factory.mktemp("cut") / "image.jpg"
    path.write_bytes(whole[: -min(cut, len(whole) - 1)])
    for decode in (read_image, verify_image):
        with pytest.raises(ImageError):
            decode(path)


def test_trailing_bytes_do_not_make_a_jpeg_broken(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    data = _encoded(_photo(40, 64), "JPEG")
    path.write_bytes(data)
    expected = read_image(path)
    path.write_bytes(data + b"\0" * 100)
    np.testing.assert_array_equal(read_image(path), expected)


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    PIL.Image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(path)
    assert (read_image(path) == (200, 100, 50)).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_keep_their_upper_half(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    PIL.Image.fromarray(values).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image[..., 0], values >> 8)
    assert (image == image[..., :1]).all()


@needs_edge_cases
def test_12_bits_are_scaled_by_their_declared_depth() -> None:
    path = EDGE_CASES / "files" / "12bit.cropped.tif"
    with PIL.Image.open(path) as image:
        raw = np.asarray(image)
    np.testing.assert_array_equal(read_image(path)[..., 0], raw >> 4)


def test_floating_point_pixels_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    PIL.Image.new("F", (4, 4), 0.5).save(path)
    for decode in (read_image, image_size, verify_image):
        with pytest.raises(ImageError, match="pixels of kind F"):
            decode(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(pipe)
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path)
    with pytest.raises(MissingImageError, match="no such file"):
        read_image(tmp_path / "none.jpg")


def test_size_limit_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    _photo(30, 40).save(path)
    monkeypatch.setattr(read, "MAX_PIXELS", 30 * 40 - 1)
    monkeypatch.setattr(PIL.Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="40x30 pixels are more than"):
        read_image(path)


def test_postscript_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(ImageError, match="not an image of a known format"):
        read_image(path)


def test_errors_cross_processes() -> None:
    for kind in (ImageError, MissingImageError):
        error = pickle.loads(pickle.dumps(kind(Path("a.jpg"), "why")))
        assert type(error) is kind
        assert (error.path, error.reason, str(error)) == (Path("a.jpg"), "why", "a.jpg: why")


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_files_decode_or_raise_image_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, flips: list[tuple[float, int]]
) -> None:
    data = bytearray(_encoded(_photo(24, 32), kind, 6 if kind in ("JPEG", "PNG", "WEBP", "TIFF") else None))
    for place, value in flips:
        data[int(place * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / "image"
    path.write_bytes(data)
    try:
        size = verify_image(path)
    except ImageError:
        return
    assert read_image(path).shape == (*size, 3), "what passes the check must be readable"
