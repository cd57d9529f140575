"""What `YOLO.train`, `YOLO.val` and `YOLO.tune` return: dictionaries that JSON can hold, with their types."""

# Annotations are evaluated here: which keys must be there is read from them.
from typing import Any

from typing_extensions import NotRequired, TypedDict

SCORES = ("mAP50-95", "mAP50", "precision", "recall")  # of `Metrics`, as they stand on pages
# Keys that Python cannot have as names.
_Scores = TypedDict("_Scores", {"mAP50-95": float})
_Class = TypedDict("_Class", {"class": int, "mAP50-95": float})


class ClassMetrics(_Class):
    """Scores of one class, ``metrics["per_class"][0]``.

    Attributes:
        class: its number.
        name: as data.yaml has it.
        images: with objects of it.
        instances: objects of it.
        precision: at the confidence where F1 of all classes is highest, 0 to 1.
        recall: likewise.
        mAP50: average precision at an IoU of 0.5, 0 to 1.
        mAP50-95: the mean of those at 0.5, 0.55 to 0.95.
    """

    name: NotRequired[str]
    images: int
    instances: int
    precision: float
    recall: float
    mAP50: float


class Metrics(_Scores):
    """Scores on a data set, the same on every rank.

    Attributes:
        coco: the twelve numbers of pycocotools, by name.
        precision: at ``confidence``, the mean of the classes, 0 to 1.
        recall: likewise.
        mAP50: mean average precision at an IoU of 0.5, 0 to 1.
        mAP50-95: the mean of those at 0.5, 0.55 to 0.95.
        confidence: where F1 is highest.
        images: how many were scored.
        instances: objects in them.
        per_class: the classes that have objects.
        fitness: what the best epoch is chosen by.
        val_loss: the loss terms by name, means over the images.
        rect: whether inputs were rectangles or squares.
        head: which head detected, of a model with several.
    """

    coco: dict[str, float]
    precision: float
    recall: float
    mAP50: float
    confidence: float
    images: int
    instances: int
    per_class: list[ClassMetrics]
    fitness: float
    val_loss: dict[str, float]
    rect: bool
    head: NotRequired[str]


class TrainResults(TypedDict):
    """A run that is over, as ``results.json`` holds it, which has more.

    Attributes:
        model: its name.
        parameters: how many it has.
        world_size: ranks at the end.
        global_batch: images of a step, over all ranks.
        slices: parts of a batch with batch norm of their own; 0 with ``--sync-bn``.
        threads: that each rank computes on.
        bitwise: ``yes`` where any number of ranks ends with the same bits; else why not.
        epochs: that were completed.
        steps: of the optimizer.
        skipped_steps: those left out, as a gradient was not finite.
        seed: of everything random.
        metrics: of the last validation.
        best_epoch: whose weights are ``best.pt``, from 0.
        train: the loss terms of the last epoch by name.
        images_per_s: over all ranks.
        wall_s: seconds of training.
        bound_by: what took most of the time: data, network or compute.
        advice: what to try, in a sentence.
        exit: the code of the job.
        versions: of what computed it.
    """

    model: str
    parameters: int
    world_size: int
    global_batch: int
    slices: int
    threads: int
    bitwise: str
    epochs: int
    steps: int
    skipped_steps: int
    seed: int
    metrics: Metrics
    best_epoch: int
    train: dict[str, float]
    images_per_s: float
    wall_s: float
    bound_by: NotRequired[str]
    advice: NotRequired[str]
    exit: int
    versions: dict[str, Any]


class TrialResults(TypedDict):
    """A trial of a search.

    Attributes:
        number: from 0.
        state: ``done``, ``pruned``, ``diverged``, ``lost``, ``running`` or ``waiting``.
        value: its best score; None for none.
        epochs: after how many it was scored last.
        params: the hyperparameters that were drawn.
        folder: of its run.
        repeats: number of the lost trial that it goes on with; None for none.
    """

    number: int
    state: str
    value: float | None
    epochs: int
    params: dict[str, float]
    folder: str
    repeats: int | None


class TuneResults(TypedDict):
    """A search that is over.

    Attributes:
        folder: of the search.
        best: the trial with the best score; None where none came to its end.
        hyp: all hyperparameters of the best trial; empty for none.
        weights: its ``best.pt``; empty for none.
        command: that trains with these hyperparameters.
        trials: all of them, by number.
    """

    folder: str
    best: TrialResults | None
    hyp: dict[str, float]
    weights: str
    command: str
    trials: list[TrialResults]
