"""Train a model of your own on the ranks of any launcher, over Horovod or torch: `horovod_yolo.distributed`.

    python examples/own_model.py
    torchrun --standalone --nproc-per-node 2 examples/own_model.py
    horovodrun -np 2 -H localhost:2 python examples/own_model.py

The losses are the same on any number of ranks: each rank's loss is its share of the global batch's mean, and
gradients are summed. A small network learns scikit-learn's handwritten digits, in seconds on a CPU.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from horovod_yolo.distributed.backends import connect
from horovod_yolo.distributed.communicator import Communicator

BATCH = 64  # images of all ranks together


def train(comm: Communicator, steps: int) -> list[float]:
    """The losses of the global batches. *Collective.*"""
    torch.manual_seed(comm.rank)  # ranks may start differently: rank 0's weights are sent below
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
    )
    optimizer, exchange = comm.exchange_gradients(
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        model.named_parameters(),
        wire=None,
        group_mb=25.0,
    )
    comm.broadcast_tensors(model.state_dict())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # the same on all ranks
    losses = []
    for step in range(steps):
        batch = order.roll(-BATCH * step)[:BATCH]
        mine = batch[comm.rank :: comm.size]
        exchange.expect(1)  # backward pass until the next step
        loss = F.cross_entropy(model(images[mine]), labels[mine], reduction="sum") / len(batch)
        loss.backward()  # gradients leave in here, group by group
        exchange.finish()
        with exchange.stepping():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(float(comm.allreduce_sum(loss.detach(), "loss").wait()))
    return losses


def main() -> None:
    """Join the job, train, and say how it went."""
    comm = connect()
    losses = train(comm, steps=60)
    if comm.rank == 0:
        print(f"{comm.size} ranks: loss {losses[0]:.4f}, after {len(losses)} steps {losses[-1]:.4f}")
    comm.close()


if __name__ == "__main__":
    main()
