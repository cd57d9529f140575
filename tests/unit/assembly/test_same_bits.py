"""What bits depend on beside the settings: it is compared when a run starts, and told."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
import torch

from horovod_yolo.assembly import same_bits
from horovod_yolo.assembly.build import build_trainer
from horovod_yolo.assembly.data import build_data
from horovod_yolo.assembly.same_bits import (
    Kind,
    compared,
    differences,
    full_gpu,
    kind_of,
    require_promise,
)
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.events import Callback, StepReport
from tests.helpers.pretend_device import NAME, pretend_device
from tests.helpers.short_runs import ALONE
from tests.helpers.short_runs import settings as short_settings
from tests.helpers.world import run_world

from .test_run import Recorder

CPU = torch.device("cpu")


def config(**flags: Any) -> TrainConfig:
    return TrainConfig(data="d.yaml", cfg="yolov5n", **flags)


def test_ranks_of_another_kind_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = kind_of(CPU, portable=False)
    assert here["torch"] == torch.__version__ and here["oneDNN"] != "none"

    def job(comm: Communicator) -> dict[str, Any]:
        return compared(config(sums="exact"), CPU, None, comm)["arithmetic"]  # type: ignore[no-any-return]

    alike = run_world(2, job)
    assert alike == [{"kind": here, "unlike": ""}] * 2 and not caplog.records
    other = "avx512" if here["instruction set"] == "avx2" else "avx2"
    kinds = iter([here, {**here, "instruction set": other}])
    # No such processor is here.
    monkeypatch.setattr(same_bits, "kind_of", lambda device, portable, compiles: next(kinds))
    first, second = run_world(2, job)
    assert first == second
    assert first["unlike"].startswith("instruction set ") and f"{other} on " in first["unlike"]
    assert "may differ; --portable-bits makes all x86 processors compute alike" in caplog.text


def test_a_run_that_goes_on_elsewhere_says_so_for_good(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    begun = {"kind": {**kind_of(CPU, portable=False), "OpenCV": "4.11.0"}, "unlike": ""}
    found = compared(config(sums="exact"), CPU, {"arithmetic": begun}, ALONE)
    unlike = found["arithmetic"]["unlike"]
    assert (
        unlike.startswith("OpenCV 4.11.0 where the run began, ")
        and found["arithmetic"]["kind"] == begun["kind"]
    )
    assert len(caplog.records) == 1
    back = compared(
        config(sums="exact"), CPU, {"arithmetic": {**found["arithmetic"], "kind": begun["kind"]}}, ALONE
    )
    assert back["arithmetic"]["unlike"] == unlike and len(caplog.records) == 1


@pytest.mark.parametrize("package", ["OpenCV", "albumentations", "Pillow", "SciPy"])
def test_ranks_with_another_version_are_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = kind_of(CPU, portable=False)
    assert here[package][0].isdigit()
    kinds = iter([here, {**here, package: "0.1"}])
    monkeypatch.setattr(same_bits, "kind_of", lambda device, portable, compiles: next(kinds))
    found = run_world(2, lambda comm: compared(config(), CPU, None, comm)["arithmetic"]["unlike"])
    assert found[0] == found[1] and found[0].startswith(f"{package} ") and "0.1 on " in found[0]


def test_what_an_older_checkpoint_does_not_say_is_not_unlike(caplog: pytest.LogCaptureFixture) -> None:
    here = kind_of(CPU, portable=False)
    older = {what: here[what] for what in here if what not in ("device", "albumentations", "Pillow", "SciPy")}
    for opencv in (here["OpenCV"], "none"):  # it knew one package of it
        begun = {"kind": {**older, "OpenCV": opencv}, "unlike": ""}
        found = compared(config(sums="exact"), CPU, {"arithmetic": begun}, ALONE)["arithmetic"]
        assert found["unlike"] == "" and not caplog.records
        assert found["kind"] == {what: here[what] for what in here if what != "SciPy"}, "compared from now on"
    with pretend_device():
        found = compared(config(), torch.device(NAME), {"arithmetic": {"kind": older, "unlike": ""}}, ALONE)
    assert found["arithmetic"]["unlike"].startswith("device cpu where the run began, ")


def test_anchors_are_in_the_checkpoint() -> None:
    """What fitted them may have become another."""
    begun = {"kind": {**kind_of(CPU, portable=False), "SciPy": "1.10.0"}, "unlike": ""}
    assert compared(config(), CPU, {"arithmetic": begun}, ALONE) == {"arithmetic": begun}


def test_a_full_gpu_is_known_to_the_checkpoint_that_is_written_next(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever then becomes of the job."""
    assert full_gpu(CPU, ALONE) is None
    refused = {"rank 0": 1, "rank 1": 1}  # while the ranks began; only CUDA counts, which is not here
    monkeypatch.setattr(same_bits, "_refusals", lambda device: refused[current_thread().name])
    full = "a GPU was full, and cuDNN may have taken other kernels (on rank 1 of 2)"

    class Fills(Callback):
        def on_step(self, report: StepReport) -> None:
            refused["rank 1"] += report.step == 2

    def job(comm: Communicator) -> list[str]:
        settings = short_settings(digits, "cpu", commit_every=1, noval=True, epochs=1)
        recorder = Recorder()
        data = build_data(load_data_yaml(digits), settings, comm)
        trainer = build_trainer(settings, data, comm, [Fills(), recorder], None)
        trainer.why_unlike = full_gpu(torch.device("cuda"), comm)
        trainer.fit()
        trainer.close()
        return [state["arithmetic"]["unlike"] for state in recorder.states]

    assert run_world(2, job) == [["", full, full]] * 2


def test_many_hosts_are_not_all_named() -> None:
    kinds: list[tuple[str, Kind]] = [(f"on host{n}", {"processor": "A" if n < 9 else "B"}) for n in range(11)]
    assert differences(kinds) == (
        "processor A on host0 and on host1 and on host2 and 6 more, B on host9 and on host10"
    )


def test_what_would_let_kernels_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = config(sums="exact", deterministic=True)
    with pretend_device():
        with pytest.raises(UserError, match=r"--sums exact promises.*add --deterministic"):
            require_promise(config(sums="exact"), torch.device(NAME), ALONE)
        require_promise(exact, torch.device(NAME), ALONE)
    cuda = torch.device("cuda")
    require_promise(exact, cuda, ALONE)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG: ':16:8'.*unset it"):
        require_promise(exact, cuda, ALONE)
    require_promise(config(sums="float"), cuda, ALONE)
    with pytest.raises(UserError, match="--portable-bits"):
        require_promise(config(portable_bits=True), CPU, ALONE)
