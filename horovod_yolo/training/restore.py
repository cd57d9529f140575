"""Equal state on all ranks before the first step: from a checkpoint, and from rank 0."""

from __future__ import annotations

from typing import Any

import torch

from horovod_yolo.checkpoint.state import EarlyStopping, Progress
from horovod_yolo.distributed.agreement import require_equal
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.optimizers import restore_optimizer


def set_state(trainer: Trainer, resumed: dict[str, Any] | None) -> None:
    """Put all ranks where a run starts, or where its checkpoint was written. *Collective.*"""
    if resumed is not None:
        restore(trainer, resumed)
    share_state(trainer)


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a run back to where its checkpoint was written, to the bit; ``state`` stays as it is."""
    trainer.stepper.model.load_state_dict(state["model"])
    trainer.ema.model.load_state_dict(state["ema"]["weights"])
    trainer.ema.updates = state["ema"]["updates"]
    restore_optimizer(trainer.stepper.optimizer, state["optimizer"])
    trainer.stepper.scaler.load_state_dict(state["scaler"])
    if state.get("exchange"):  # of a run whose gradients are summed as this one's
        trainer.stepper.exchange.load_state_dict(state["exchange"])
    trainer.progress = Progress(**state["progress"])
    trainer.early_stopping = EarlyStopping(**state["early_stopping"])
    trainer.metrics = state["metrics"]
    if trainer.sampler.weights is not None:
        trainer.sampler.weights.load_state_dict(state["image_weights"])
    if trainer.plan is not None:
        trainer.plan.load_state_dict(state["time_plan"])
        trainer.follow_plan()
    trainer.passes = state.get("passes", trainer.passes)
    if trainer.passes != trainer.stepper.passes.count and not trainer.config.sync_bn:  # which keeps them
        trainer.note_unlike(f"another --micro-batch from step {trainer.progress.step + 1} on")
    if trainer.about.get("positions_in") == state.get("positions_in"):  # else an image has another number
        trainer.lost_images = dict(state.get("lost_images", {}))
        trainer.loader.leave_out(trainer.lost_images)
    if trainer.evaluator and trainer.about.get("validated_in") == state.get("validated_in"):
        trainer.lost_in_validation = dict(state.get("lost_in_validation", {}))
        trainer.evaluator.leave_out(trainer.lost_in_validation)
    torch.set_rng_state(state["rng"]["torch"])


def share_state(trainer: Trainer) -> None:
    """Give all ranks rank 0's weights, then make sure of it. *Collective.*

    The optimizer's state needs no broadcast: it is empty in a new run, and all ranks of a resumed one
    got it with the checkpoint. ``hvd.broadcast_optimizer_state`` would make a real step to fill it,
    which changes the weights where they decay.
    """
    comm, model, averaged = trainer.comm, trainer.stepper.model, trainer.ema.model
    for what, module in (("parameters", model), ("averaged parameters", averaged)):
        comm.broadcast_tensors(module.state_dict())
        require_equal(comm, module.state_dict(), what)
