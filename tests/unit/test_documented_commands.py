"""Each command line of the documents is one that its program's own parser takes, or the test of it fails."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from horovod_yolo.core.errors import UserError
from tests.helpers.command_lines import DOCS, Line, fenced, simple_commands, spans, with_examples
from tests.helpers.command_parsers import PROGRAMS, Call, RefusedError, understand

WITH_COMMANDS = [document for document in DOCS if fenced(document)]


def parse(line: Line, folder: Path) -> None:
    understand(Call(line.words[0], line.words[1:], folder, whole=line.whole))


def refused(lines: list[Line], folder: Path) -> list[str]:
    """The lines that a parser does not take, with what it says."""
    found = []
    for line in lines:
        try:
            parse(line, folder)
        except SystemExit as left:
            if left.code:  # 0: of --help
                found.append(str(line))
        except Exception as error:  # noqa: BLE001  whatever a parser says of a line
            found.append(f"{line}\n    {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_of_blocks_are_parsed(document: Path, tmp_path: Path) -> None:
    assert refused(fenced(document), tmp_path) == []


def test_commands_within_sentences_are_parsed(tmp_path: Path) -> None:
    found = [line for document in DOCS for line in spans(document) if line.words[0] in PROGRAMS]
    assert len(found) > 50
    assert refused(found, tmp_path) == []


def test_no_kind_of_program_is_known_in_vain() -> None:
    called = " ".join(
        shlex.join(line.words) for document in DOCS for line in fenced(document) + spans(document)
    )
    assert [name for name in PROGRAMS if name not in called] == []


@pytest.mark.parametrize(
    "command",
    [
        "a-program-of-tomorrow --now",
        "python train.py --data d.yaml --cfg yolov5s --epoch 3",
        "python train.py --data d.yaml --cfg yolov5s --batch-size 16 --np 32",
        "python train.py --cfg yolov5s",
        "python examples/nothing.py",
        "python -m nothing",
        "horovod-yolo trian",
        "horovod-yolo val --weight best.pt",
        "horovod-yolo launch --hosts host1:4 -- train --data d.yaml --cfg yolov5s --nothing",
        "horovod-yolo launch --hosts host1:x -- train --data d.yaml --cfg yolov5s",
        "launch/slurm.sh -- train --data d.yaml --cfg yolov5s",
        "horovodrun -np 2 --nothing python train.py --data d.yaml --cfg yolov5s",
        "horovodrun -np 2 -H host1:4 python train.py --data d.yaml --cfg yolov5s",
        "horovodrun -np 2 python train.py --data d.yaml --nothing",
        "mpirun -np 2 -nothing python train.py --data d.yaml --cfg yolov5s",
        "mpirun -np 2 -bind-to nothing python train.py --data d.yaml --cfg yolov5s",
        "mpirun -np 2 python train.py --data d.yaml --nothing",
        "torchrun --nothing train.py --data d.yaml --cfg yolov5s",
        "torchrun --standalone --nproc-per-node 2 train.py --data d.yaml --nothing",
        "sbatch --nothing launch/slurm.sbatch -- train --data d.yaml --cfg yolov5s",
        "sbatch --nodes=some launch/slurm.sbatch -- train --data d.yaml --cfg yolov5s",
        "sbatch --nodes=2 launch/slurm.sbatch -- train --data d.yaml --nothing",
        "srun --mpi=nothing python train.py --data d.yaml --cfg yolov5s",
        "docker run --nothing horovod-yolo:cpu",
        "docker run horovod-yolo:cpu horovod-yolo val --nothing",
        "docker build -t x -f docker/Dockerfile.nothing .",
        "kubectl apply --nothing -f launch/k8s/mpijob.yaml",
        "kubectl apply -f launch/k8s/nothing.yaml",
        "aws sagemaker create-a-job",
        "make nothing",
        "make bench BENCH=nothing",
        "make mutants MUTANTS=--nothing",
        "pip install --nothing .",
        "pip install '.[nothing]'",
        "apt-get no-such-operation make",
        "sudo make nothing",
        "git clone --nothing x",
        "mkdir --nothing x",
        "qsub -x launch/pbs.sh -- train --data d.yaml --cfg yolov5s",
        'eval "$(horovod-yolo completion fish)"',
    ],
)
def test_what_is_wrong_is_refused(command: str, tmp_path: Path) -> None:
    (words,) = simple_commands(command)
    with pytest.raises((RefusedError, UserError, ValueError, SystemExit)):
        parse(Line("here", words), tmp_path)


def test_a_shells_text_is_taken_apart() -> None:
    text = "a 'b c' > d && e | f  # no g\n\nh \\\n  i; j >>k"
    assert [words for words in simple_commands(text) if words] == [
        ("a", "b c"), ("e",), ("f",), ("h", "i"), ("j",)
    ]  # fmt: skip
    assert "<this repository>" not in with_examples("git clone <this repository> here")
