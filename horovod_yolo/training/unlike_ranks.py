"""Ranks whose processors round otherwise, and so come to other weights."""

from __future__ import annotations

import logging

from torch import Tensor

from horovod_yolo.distributed.agreement import different_ranks
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.step import Stepper

log = logging.getLogger(__name__)


def with_weights_of_rank_0(comm: Communicator, stepper: Stepper, ema: Ema, *, again: bool) -> bool:
    """Where unlike processors have rounded otherwise, let all go on with rank 0's weights. *Collective.*

    All ranks step with the same gradients, but not by the same bits: the norm that clips them and MuSGD's
    matrices are sums, whose order depends on the processor.

    Args:
        comm: the ranks.
        stepper: with model and optimizer.
        ema: the averaged model.
        again: it has happened before, and been said.

    Returns:
        Whether weights were unlike.
    """
    different = different_ranks(comm, dict(stepper.model.named_parameters()))
    if not different:
        return False
    log.log(
        logging.DEBUG if again else logging.INFO,  # which rank 0 alone prints
        "after this epoch weights on ranks %s differ from rank 0's (unlike processors round otherwise): "
        "all go on with rank 0's, now and after each epoch",
        different,
    )
    state = stepper.optimizer.state_dict()["state"]
    moments = {f"{n}.{key}": value for n, own in state.items() for key, value in own.items()}
    for tensors in (stepper.model.state_dict(), ema.model.state_dict(), moments):
        comm.broadcast_tensors({k: v for k, v in tensors.items() if isinstance(v, Tensor)})
    return True
