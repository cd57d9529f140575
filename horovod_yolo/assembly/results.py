"""What a run leaves when it is over: ``results.json``, and what its callbacks write at the end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from horovod_yolo.assembly.device import device_name
from horovod_yolo.assembly.run_folder import versions, write_json
from horovod_yolo.core.errors import UnwrittenError
from horovod_yolo.process.portable_bits import processor
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.pace import Pace

log = logging.getLogger(__name__)


def time_spent(trainer: Trainer) -> dict[str, Any]:
    """What the time of this job's training went into, over all ranks. *Collective.*

    Returns:
        For ``results.json``; nothing where there was no training.
    """
    device = trainer.stepper.precision.device
    name = processor()[0] if device.type == "cpu" else device_name(device)
    gathered = trainer.comm.allgather_object((trainer.spent, socket.gethostname(), name))
    spent, hosts, devices = zip(*gathered, strict=True)
    if not any(each.total for each in spent):
        return {}
    pace = Pace.of(spent)
    words = pace.words(hosts[pace.rank])
    log.info("%s", words)
    return {
        "bound_by": pace.bound,
        "time_shares": dict(pace.shares),
        "pace_of_rank": pace.rank,
        "advice": words,
        "ranks": [
            {
                "host": host,
                "device": device,
                "total_s": each.total,
                "data_wait_s": each.data,
                "rank_wait_s": each.ranks,
                "validation_s": each.validation,
                "commit_s": each.commit,
            }
            for each, host, device in zip(spent, hosts, devices, strict=True)
        ],
    }


def results_of(trainer: Trainer, spent: dict[str, Any]) -> dict[str, Any]:
    """The content of ``results.json``, with what `time_spent` found."""
    progress, model = trainer.progress, trainer.stepper.model
    terms = trainer.stepper.criterion.terms
    return {
        "model": model.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "world_size": trainer.comm.size,
        "global_batch": trainer.config.batch_size,
        "slices": trainer.config.slices,
        "threads": torch.get_num_threads(),
        "bitwise": bitwise(trainer),
        **_shares(trainer),
        "epochs": progress.epoch,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "seed": trainer.config.seed,
        "metrics": trainer.metrics,
        "best_epoch": trainer.early_stopping.best_epoch,
        "train": {f"{term}_loss": progress.last_losses.get(term, 0.0) for term in terms},
        **(trainer.plan.results() if trainer.plan else {}),
        "images_per_s": progress.images / progress.wall_s if progress.wall_s else 0.0,
        "wall_s": progress.wall_s,
        **spent,
        **({"faults": trainer.about["faults"]} if "faults" in trainer.about else {}),
        **({"teacher": trainer.about["teacher"]["model"]} if trainer.config.teacher else {}),
        "exit": 0,
        "versions": versions(),
    }


def _shares(trainer: Trainer) -> dict[str, Any]:
    """How many slices each rank had in the end, where that is not as many as all."""
    balance = trainer.stepper.balance
    if balance is None:
        return {}
    return {
        "balance": trainer.config.balance,
        "slices_of_ranks": list(balance.shares),
        "seconds_a_slice": list(balance.seconds),
        "times_shared_anew": balance.changes,
    }


def bitwise(trainer: Trainer) -> str:
    """``yes`` where the same run on another number of ranks ends with the same bits; else why not."""
    config = trainer.config
    if config.time:
        return "no: --time"
    if config.sync_bn:
        return "no: --sync-bn"
    if config.sums != "exact":
        return "no: --sums float"
    unlike = trainer.about["arithmetic"]["unlike"]
    return f"no: {unlike}" if unlike else "yes"


def finish(folder: Path, callbacks: Sequence[Callback], results: dict[str, Any]) -> list[str]:
    """Write ``results.json`` and end the callbacks; what must last and could not be written."""
    refused = _refused_results(folder, results)
    unwritten = []
    for callback in callbacks:
        try:
            callback.on_end(results)
        except UnwrittenError as error:
            unwritten.append(str(error))
    if refused or unwritten:  # the disk may have been mended while the checkpoint was tried again
        refused = _refused_results(folder, {**results, "exit": 1 if unwritten else 0})
    return [*unwritten, *refused]


def _refused_results(folder: Path, results: dict[str, Any]) -> list[str]:
    try:
        write_json(folder / "results.json", results)
    except OSError as error:
        return [f"{folder / 'results.json'} could not be written ({error.strerror or error})"]
    return []
