"""How a rank's share of a batch goes forward and back, where its losses are divided by sums over all ranks.

Early: the normalisers are known before the first loss. Where they depend on predictions, a rank with several
slices has to keep the predictions of all of them, or to make them twice.

Late: dividing a loss divides its gradients. So each slice goes back undivided as soon as its predictions are
there, its gradients wait until the normalisers have been summed over the ranks, and each slice's are divided
by themselves. Who has the other slices changes no bit by that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from horovod_yolo.core.slices import in_parts
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.communicator import GradientExchange, Sums
from horovod_yolo.distributed.exact_sums import ExactExchange
from horovod_yolo.losses.criterion import IMAGES, Criterion, Loss, by_name, count

Totals = Mapping[str, Tensor]  # the normalisers, by name


@dataclass(frozen=True)
class Share:
    """A rank's of a global batch, and what is done with it."""

    micro_batches: Sequence[Batch]  # of all its slices
    forward: Callable[[Batch, bool], Any]  # predictions; whether batch norm tracks the images
    match: Callable[[Batch, Any], Any]  # by these predictions
    sums: Sums  # over the ranks
    before_last: Callable[[], None]  # called when no forward pass is left, after the normalisers' sum began
    back: Callable[[Tensor], None]  # the backward pass
    follows: bool  # the other ranks, and its gradients are not used
    together: int  # images that may be on their way in several passes

    def start_count(self, criterion: Criterion[Any, Any], matches: Sequence[Any]) -> Callable[[], Totals]:
        """Start to sum the normalisers; what gives them. *Collective.*"""
        images = sum(map(len, self.micro_batches))
        counting = self.sums.allreduce_sum(count(criterion, matches, images), "normalisers")
        return lambda: by_name(criterion, counting.wait())


class Division(ABC):
    """When losses are divided."""

    @abstractmethod
    def through(self, share: Share) -> tuple[Tensor, Totals]:
        """Take a share forward and back. *Collective.*

        Returns:
            (2, T) loss terms in parts, each times the global images, and the normalisers.
        """

    def look(self, predictions: Any, matches: Any) -> None:  # noqa: B027  # most have nothing to see
        """See from a pass through the model as it is written which loss reaches which parameter."""

    @abstractmethod
    def source(self, predictions: Any, matches: Any, totals: Totals) -> Tensor:
        """() what a micro-batch goes back from."""


def division_of(
    criterion: Criterion[Any, Any],
    exchange: GradientExchange,
    parameters: Sequence[nn.Parameter],
    scaler: torch.amp.GradScaler,
) -> Division:
    """Late where there are exact sums and the normalisers depend on predictions.

    With a loss scaler it is early all the same: what is not divided might be too large for float16.

    Args:
        criterion: of the model.
        exchange: of the gradients.
        parameters: all that get gradients, in the order of the exchange.
        scaler: of the losses.
    """
    if isinstance(exchange, ExactExchange) and criterion.divides_late and not scaler.is_enabled():
        return LateDivision(criterion, exchange, parameters)
    return EarlyDivision(criterion)


class EarlyDivision(Division):
    """Before they go back."""

    def __init__(self, criterion: Criterion[Any, Any]) -> None:
        self._criterion = criterion

    def through(self, share: Share) -> tuple[Tensor, Totals]:
        """See `Division`."""
        matches, kept = self._match(share)
        totals_of = share.start_count(self._criterion, matches)
        totals: Totals = {}
        terms: list[Tensor] = []
        for micro_batch, matched, predictions in zip(share.micro_batches, matches, kept, strict=True):
            if predictions is None:
                predictions = share.forward(micro_batch, True)
            if len(terms) == len(share.micro_batches) - 1:
                share.before_last()
            totals = totals or totals_of()  # they travelled meanwhile
            loss = self._criterion(predictions, matched, totals)
            share.back(loss.total)
            terms.append(in_parts(loss.terms.double() * totals[IMAGES]))
        return torch.stack(terms).sum(dim=0), totals

    def source(self, predictions: Any, matches: Any, totals: Totals) -> Tensor:
        """See `Division`."""
        return self._criterion(predictions, matches, totals).total

    def _match(self, share: Share) -> tuple[list[Any], list[Any]]:
        """The matches of each micro-batch, and its predictions where they were made for that and can be kept.

        Keeping those of more than one may take more memory than there is: then they are made without a graph
        here, and once more for the loss.
        """
        micro_batches = share.micro_batches
        if not self._criterion.matching_needs_predictions:
            return [share.match(one, None) for one in micro_batches], [None] * len(micro_batches)
        fits = sum(map(len, micro_batches)) <= share.together and all(micro_batches)
        if len(micro_batches) == 1 or fits:
            kept = [share.forward(one, True) for one in micro_batches]
            return [share.match(*of) for of in zip(micro_batches, kept, strict=True)], kept
        with torch.no_grad():
            matches = [share.match(one, share.forward(one, False)) for one in micro_batches]
        return matches, [None] * len(micro_batches)


class LateDivision(Division):
    """After they went back.

    Args:
        criterion: that has `undivided` losses.
        exchange: of the gradients, which keeps them meanwhile.
        parameters: all that get gradients, in the order of the exchange.
    """

    def __init__(
        self, criterion: Criterion[Any, Any], exchange: ExactExchange, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._criterion = criterion
        self._exchange = exchange
        self._parameters = parameters
        self._which: list[int] = []  # for each parameter the number of its normaliser

    def through(self, share: Share) -> tuple[Tensor, Totals]:
        """See `Division`."""
        matches: list[Any] = []
        terms: list[Tensor] = []
        totals: Totals = {}
        ratios = torch.empty(0)
        if not share.follows:
            self._exchange.keep()
        for number, micro_batch in enumerate(share.micro_batches, start=1):
            predictions = share.forward(micro_batch, True)
            matches.append(share.match(micro_batch, predictions))
            total, undivided = self._loss(predictions, matches[-1])
            terms.append(undivided)
            if number == len(share.micro_batches):
                totals_of = share.start_count(self._criterion, matches)
                share.before_last()
                totals = totals_of()
                ratios = self._ratios(totals)
                if not share.follows:
                    self._exchange.multiply(self._multipliers(ratios))
            share.back(total)
        of_passes = (torch.stack(terms) * ratios[:, None]).sum(dim=1)
        return in_parts(of_passes).sum(dim=1), totals

    def look(self, predictions: Any, matches: Any) -> None:
        """See `Division`."""
        self._loss(predictions, matches)

    def source(self, predictions: Any, matches: Any, totals: Totals) -> Tensor:
        """See `Division`."""
        return self._loss(predictions, matches)[0]

    def _loss(self, predictions: Any, matches: Any) -> tuple[Tensor, Tensor]:
        """() what a micro-batch goes back from, and (K, T) float64 terms by normaliser, both undivided."""
        losses = self._criterion.undivided(predictions, matches)
        if not self._which:
            self._which = _normalisers_of(self._parameters, losses)
        total = torch.stack([loss.total for loss in losses.values()]).sum()
        return total, torch.stack([loss.terms.double() for loss in losses.values()])

    def _ratios(self, totals: Totals) -> Tensor:
        """(K,) float64 the images by each normaliser."""
        divisors = torch.stack([totals[name] for name in self._criterion.normalisers])
        return totals[IMAGES].clamp(min=1) / divisors.clamp(min=1)

    def _multipliers(self, ratios: Tensor) -> list[Tensor]:
        """() for each parameter's gradients."""
        each = [*ratios.to(self._parameters[0].dtype)]
        return [each[which] for which in self._which]


def _normalisers_of(parameters: Sequence[nn.Parameter], losses: Mapping[str, Loss]) -> list[int]:
    """For each parameter the number of the loss that it gets gradients from; of none 0."""
    reached = [_reached(loss.total) for loss in losses.values()]
    found = []
    for parameter in parameters:
        numbers = [number for number, some in enumerate(reached) if id(parameter) in some]
        if len(numbers) > 1:
            raise RuntimeError("a parameter gets gradients of losses that are divided by different numbers")
        found.append(numbers[0] if numbers else 0)
    return found


def _reached(total: Tensor) -> set[int]:
    """The `id` of each parameter that a value depends on."""
    nodes: list[Any] = [total.grad_fn]
    seen, found = set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return found
