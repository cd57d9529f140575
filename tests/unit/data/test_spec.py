"""data.yaml: what is read, and that each mistake gives one line with where and what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules, Numbering
from horovod_yolo.data.formats.rules import FIRST
from horovod_yolo.data.spec import load_data_yaml

SETS = Path(__file__).resolve().parents[3] / "../shared/data"


def _write(folder: Path, text: str) -> Path:
    path = folder / "data.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_yolov5s_keys(tmp_path: Path) -> None:
    path = _write(tmp_path, "path: set\ntrain: [a, b.txt]\nval: c\ntest:\nnc: 2\nnames: [cat, 7]\n")
    spec = load_data_yaml(path)
    assert spec.root == tmp_path / "set"
    assert (spec.train, spec.val, spec.test) == (("a", "b.txt"), ("c",), ())
    assert spec.names == ("cat", "7")
    assert spec.num_classes == 2
    assert spec.file == path


def test_root_starts_at_the_files_folder_not_at_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    _write(tmp_path, "train: a\nval: b\nnames: [x]\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_data_yaml(Path("../data.yaml")).root.resolve() == tmp_path.resolve()
    absolute = _write(tmp_path, "path: /data/x\ntrain: a\nval: b\nnames: [x]\n")
    assert load_data_yaml(absolute).root == Path("/data/x")


def test_names_as_mapping_in_any_order_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes("\ufefftrain: a\nval: b\nnames: {1: zwölf, 0: x}\n".encode())
    assert load_data_yaml(path).names == ("x", "zwölf")


def test_download_is_named_and_never_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = tmp_path / "ran"
    path = _write(tmp_path, f"train: a\nval: b\nnames: [x]\ndownload: bash touch {marker}\n")
    with caplog.at_level(logging.WARNING):
        load_data_yaml(path)
    assert "'download' is ignored" in caplog.text
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a mapping"),
        ("- a\n- b\n", "not a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("a: 2024-13-45\n", "not valid YAML"),
        pytest.param("[" * 600, "not valid YAML", id="deep"),
        ("val: b\nnames: [x]\n", "has no 'train'"),
        ("train: a\nnames: [x]\n", "has no 'val'"),
        ("train: []\nval: b\nnames: [x]\n", "has no 'train'"),
        ("train: 5\nval: b\nnames: [x]\n", "train: 5 is not a path"),
        ("train: [a, 5]\nval: b\nnames: [x]\n", "train: 5 is not a path"),
        ("path: 5\ntrain: a\nval: b\nnames: [x]\n", "path: 5 is not a folder"),
        ("train: a\nval: b\n", "has no usable 'names'"),
        ("train: a\nval: b\nnames: []\n", "has no usable 'names'"),
        ("train: a\nval: b\nnames: {0: x, 2: y}\n", "names has no class 1"),
        ("train: a\nval: b\nnames: {1: x, 2: y}\n", "names has no class 0"),
        ("train: a\nval: b\nnames: [x, ~]\n", "class name None is not text"),
        ("train: a\nval: b\nnames: [x, ' ']\n", "class name ' ' is not text"),
        ('train: a\nval: b\nnames: ["x\\ny", z]\n', "class name 'x\\ny' has a line end"),
        ('train: a\nval: b\nnames: {0: "x\\u2028"}\n', "class name 'x\\u2028' has a line end"),
        ("train: a\nval: b\nnames: red blue\n", "has no usable 'names'"),
        ("train: a\nval: b\nnames: {a: x, b: y}\n", "names has 'a' for a class number"),
        ("train: a\nval: b\nnames: {-1: x, 0: y}\n", "names has '-1' for a class number"),
        ("train: a\nval: b\nnames: [x]\nnames: [y]\n", "not valid YAML ('names' twice, line 4)"),
        ("train: a\nval: b\nnames: {0: x, 0: y}\n", "not valid YAML ('0' twice, line 3)"),
        ("train: a\nval: b\nnames: [x]\nkpt_shape: 17\n", "kpt_shape is 17"),
        ("train: a\nval: b\nnames: [x]\nkpt_shape: [17, 4]\n", "kpt_shape is [17, 4]"),
        ("train: a\nval: b\nnames: [x, [y]]\n", "class name ['y'] is not text"),
        ("train: a\nval: b\nnc: 3\nnames: [x, y]\n", "nc is 3, but names has 2"),
        ("train: a\nval: b\nnc: two\nnames: [x, y]\n", "nc is 'two', but names has 2"),
        ("trian: a\nval: b\nnames: [x]\n", "unknown key 'trian'. did you mean 'train'?"),
        ("train: a\nval: b\nnames: [x]\nzebra: 1\n", "unknown key 'zebra'"),
    ],
)
def test_mistakes_give_one_line_with_where_and_what_to_do(tmp_path: Path, text: str, what: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_data_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {what}")
    assert "\n" not in message
    assert ". " in message.removeprefix(f"{path}: {what.split('. ')[0]}"), "says what to do"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_data_yaml(path)


@settings(max_examples=50)
@given(
    data=st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "ignore"))
    )
)
def test_any_content_gives_a_spec_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("spec") / "data.yaml"
    path.write_bytes(b"train: a\nval: b\nnames: [x]\n" + data)
    try:
        spec = load_data_yaml(path)
    except UserError:
        return
    assert spec.num_classes == len(spec.names) >= 1


@pytest.mark.skipif(not SETS.is_dir(), reason=f"{SETS} is not here")
def test_reads_every_shared_set() -> None:
    counts = {path.parent.name: load_data_yaml(path).num_classes for path in SETS.glob("*/data.yaml")}
    assert counts["bccd"] == 3
    assert counts["coco-ccby"] == 80
    assert counts["rbc-roboflow"] == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("{'0': red, '1': blue}", ("red", "blue")),
        ("{'1': blue, 0: red}", ("red", "blue")),
        ("[no, yes]", ("no", "yes")),
        ("[010, 1:30, 1.0, 1e3, 2001-01-01, 0x1F]", ("010", "1:30", "1.0", "1e3", "2001-01-01", "0x1F")),
        ("[x, x]", ("x", "x")),
    ],
)
def test_names_are_what_is_written(tmp_path: Path, names: str, expected: tuple[str, ...]) -> None:
    spec = load_data_yaml(_write(tmp_path, f"train: a\nval: b\nnames: {names}\n"))
    assert spec.names == expected


@pytest.mark.parametrize(
    ("encoding", "what"),
    [
        ("utf-16", "UTF-16 text"),
        ("utf-16-le", "UTF-16 text"),
        ("latin-1", "not UTF-8 text (byte 0xe9 in line 3)"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, encoding: str, what: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_bytes("train: a\nval: b\nnames: [caf\u00e9]\n".encode(encoding))
    with pytest.raises(UserError) as caught:
        load_data_yaml(path)
    assert str(caught.value).startswith(f"{path}: {what}")
    assert "save it as UTF-8" in str(caught.value)


def test_pose_sets_say_what_follows_a_box(tmp_path: Path) -> None:
    text = "train: a\nval: b\nnames: [x]\nkpt_shape: [17, 3]\nflip_idx: [0, 1]\n"
    assert load_data_yaml(_write(tmp_path, text)).rules.keypoints == (17, 3)
    assert load_data_yaml(tmp_path / "data.yaml", LabelRules(version=FIRST)).rules.keypoints is None


def test_labels_for_a_model_of_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    spec = load_data_yaml(_write(tmp_path, "train: a\nval: b\nnames: [Dog, Cat]\n"))
    assert spec.for_classes(("Dog", "Cat"), "m").numbered is None
    turned = spec.for_classes(("cat", "dog"), "m")
    assert turned.names == ("cat", "dog")
    assert turned.numbered == Numbering(("Dog", "Cat"), (1, 0))
    assert not caplog.messages
    assert spec.for_classes(("cat",), "m").numbered == Numbering(("Dog", "Cat"), (None, 0))
    assert spec.for_classes(("cow", "cat", "dog"), "m").numbered == Numbering(("Dog", "Cat"), (2, 1))
    assert caplog.messages == [
        f"{spec.file}: left out are 'Dog', which the model does not know",
        f"{spec.file}: not among its names are 'cow', which the model knows",
    ]
    exchanged = load_data_yaml(spec.file, LabelRules(class_map=(("dog", "Cat"), ("cat", "Dog"))))
    assert exchanged.for_classes(spec.names, "m").numbered is None, "it is the labels' names that it is about"
    for strangers in (("cow", "cat"), ("x", "y")):
        with pytest.raises(UserError, match=f"{tmp_path}/data.yaml: classes meet .*'Dog', 'Cat'; and"):
            spec.for_classes(strangers, "classes meet")
