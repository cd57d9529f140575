"""Suppression as part of an ONNX graph: boxes and scores in, the best detections of each image out.

The same as `models.suppression`: what overlaps a better box of its class by more than the IoU is left out,
and of equal scores the earlier place is the better one.
"""

from __future__ import annotations

from typing import Any

from horovod_yolo.models.suppression import Thresholds

# What both graphs end with: `flat` has a score for each place of `where_from` and each class, of which the T
# highest are taken. Rows behind the last detection are zero.
_ENDING = """
    classes_0 = Constant<value = int64 {{{classes}}}>()
    score, chosen = TopK<axis = 1>(flat, count)
    row = Div(chosen, classes_0)
    whole = Mul(row, classes_0)
    number = Sub(chosen, whole)
    place = GatherElements<axis = 1>(where_from, row)
    two = Constant<value = int64[1] {{2}}>()
    place_3 = Unsqueeze(place, two)
    four = Constant<value = int64[3] {{1, 1, 4}}>()
    place_4 = Expand(place_3, four)
    box = GatherElements<axis = 1>(boxes, place_4)
    score_3 = Unsqueeze(score, two)
    number_f = Cast<to = 1>(number)
    number_3 = Unsqueeze(number_f, two)
    rows = Concat<axis = 2>(box, score_3, number_3)
    least = Constant<value = float {{{confidence!r}}}>()
    nothing = Constant<value = float {{0.0}}>()
    counts = Greater(score_3, least)
    detections = Where(counts, rows, nothing)
"""

_EACH_ONCE = """
    one = Constant<value = int64[1] {{1}}>()
    two_0 = Constant<value = int64[1] {{2}}>()
    best_3, best_class = TopK<axis = 2>(scores, one)
    best = Squeeze(best_3, two_0)
    size = Shape<start = 1, end = 2>(scores)
    most = Constant<value = int64[1] {{{most}}}>()
    count = Min(most, size)
    best_score, where_from = TopK<axis = 1>(best, count)
    from_3 = Unsqueeze(where_from, two_0)
    each_class = Constant<value = int64[3] {{1, 1, {classes}}}>()
    from_c = Expand(from_3, each_class)
    candidates = GatherElements<axis = 1>(scores, from_c)
    flat_shape = Constant<value = int64[2] {{0, -1}}>()
    flat = Reshape(candidates, flat_shape)
"""

_SUPPRESSED = """
    {wanted}
    by_class = Transpose<perm = [0, 2, 1]>(wanted)
    most_of_a_class = Constant<value = int64[1] {{{most}}}>()
    overlap = Constant<value = float[1] {{{iou!r}}}>()
    least_0 = Constant<value = float[1] {{{confidence!r}}}>()
    survivors = NonMaxSuppression(boxes, by_class, most_of_a_class, overlap, least_0)
    image_place_class = Constant<value = int64[3] {{0, 2, 1}}>()
    where_kept = Gather<axis = 1>(survivors, image_place_class)
    kept_scores = GatherND(wanted, where_kept)
    shape = Shape(wanted)
    no_scores = ConstantOfShape<value = float[1] {{0.0}}>(shape)
    kept = ScatterND(no_scores, where_kept, kept_scores)
    flat_shape = Constant<value = int64[2] {{0, -1}}>()
    flat = Reshape(kept, flat_shape)
    size = Shape<start = 1, end = 2>(flat)
    count = Min(most_of_a_class, size)
    zero = Constant<value = int64 {{0}}>()
    step = Constant<value = int64 {{1}}>()
    places_1 = Shape<start = 1, end = 2>(boxes)
    places = Squeeze(places_1)
    in_order = Range(zero, places, step)
    images_1 = Shape<start = 0, end = 1>(boxes)
    each_image = Concat<axis = 0>(images_1, places_1)
    where_from = Expand(in_order, each_image)
"""

_EVERY_CLASS = "wanted = Identity(scores)"
_BEST_CLASS = """
    top = ArgMax<axis = 2, keepdims = 1>(scores)
    numbers = Constant<value = int64[{classes}] {{{all_numbers}}}>()
    is_top = Equal(top, numbers)
    no_score = Constant<value = float {{0.0}}>()
    wanted = Where(is_top, scores, no_score)
"""


def suppression_model(
    thresholds: Thresholds, classes: int, opset: int, ir_version: int, *, once: bool
) -> Any:
    """An ONNX model: ``boxes`` (B, M, 4) and ``scores`` (B, M, C) -> ``detections`` (B, T, 6).

    Rows are x1, y1, x2, y2, score, class, best first; T is the most of ``thresholds``, or all that there are.

    Args:
        thresholds: what counts; not ``agnostic``.
        classes: C.
        opset: of the operators, 15 or more.
        ir_version: of the file format.
        once: each object is found once: nothing is suppressed.
    """
    import onnx.parser

    wanted = _EVERY_CLASS if thresholds.multi_label else _BEST_CLASS
    values = {
        "classes": classes,
        "all_numbers": ", ".join(map(str, range(classes))),
        "most": thresholds.most,
        "iou": float(thresholds.iou),
        "confidence": float(thresholds.confidence),
    }
    begin = _EACH_ONCE if once else _SUPPRESSED
    nodes = begin.format(**values, wanted=wanted.format(**values)) + _ENDING.format(**values)
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
        f"suppress (float[B, M, 4] boxes, float[B, M, {classes}] scores) => (float[B, T, 6] detections)\n"
        f"{{{nodes}}}"
    )
