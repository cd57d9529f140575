"""The journal of a search, with Optuna itself: who takes which trial, and what comes of a lost one."""

from __future__ import annotations

from pathlib import Path

import pytest

from horovod_yolo.tune.space import Range
from horovod_yolo.tune.study import JOURNAL, LEAST_TO_COMPARE, Claimed, Study, best_of

SPACE = {"lr0": Range(0.001, 0.1, log=True), "mosaic": Range(choices=(0.0, 0.5, 1.0))}
DEFAULTS = {"lr0": 0.01, "mosaic": 1.0, "momentum": 0.9}


def study(folder: Path, *, wanted: int = 6, seed: int = 7, warmup: int | None = 1) -> Study:
    return Study(folder, SPACE, seed=seed, wanted=wanted, warmup_epochs=warmup)


def begun(folder: Path, wanted: int = 6, seed: int = 7) -> Study:
    folder.mkdir(exist_ok=True)
    found = study(folder, wanted=wanted, seed=seed)
    found.begin(DEFAULTS, wanted)
    return found


def claimed(found: Study, owner: str = "me") -> Claimed:
    trial = found.claim(owner)
    assert trial is not None
    return trial


def score(params: dict[str, float]) -> float:
    return params["mosaic"] - abs(params["lr0"] - 0.03)


def finish(found: Study, owner: str = "me") -> list[dict[str, float]]:
    """Do all trials, of one epoch each; what was drawn."""
    drawn = []
    while (trial := found.claim(owner)) is not None:
        drawn.append(trial.params)
        trial.judge(1, score(trial.params))
        found.end(trial, "done")
    return drawn


def test_there_are_as_many_trials_as_wanted_and_the_first_has_the_defaults(tmp_path: Path) -> None:
    found = begun(tmp_path)
    drawn = finish(found)
    assert len(drawn) == 6 and drawn[0] == {"lr0": 0.01, "mosaic": 1.0}
    assert len({params["lr0"] for params in drawn}) == 6
    assert all(params["lr0"] in SPACE["lr0"] and params["mosaic"] in SPACE["mosaic"] for params in drawn)
    best = best_of(found.trials())
    assert best is not None and best.value == max(map(score, drawn)) == score(dict(best.params))


def test_defaults_that_are_out_of_the_ranges_are_not_tried(tmp_path: Path) -> None:
    found = study(tmp_path)
    found.begin({**DEFAULTS, "lr0": 0.5}, 3)
    assert len(found.trials()) == 3 and claimed(found).params["lr0"] <= 0.1


def test_the_seed_decides_what_is_drawn_also_after_a_break(tmp_path: Path) -> None:
    undisturbed = finish(begun(tmp_path / "a"))
    broken = begun(tmp_path / "b")
    first = []
    for _ in range(3):
        trial = claimed(broken)
        first.append(trial.params)
        trial.judge(1, score(trial.params))
        broken.end(trial, "done")
    assert first + finish(study(tmp_path / "b")) == undisturbed
    assert finish(begun(tmp_path / "c", seed=8)) != undisturbed


def test_two_jobs_share_the_trials(tmp_path: Path) -> None:
    one = begun(tmp_path)
    two = study(tmp_path)
    taken = [claimed(each, owner) for _ in range(3) for each, owner in ((one, "one"), (two, "two"))]
    assert sorted(trial.number for trial in taken) == list(range(6))
    assert one.claim("one") is None and two.claim("two") is None
    assert [trial.state for trial in one.trials()] == ["running"] * 6


def test_a_lost_trial_is_queued_once_with_its_values_and_its_folder(tmp_path: Path) -> None:
    found = begun(tmp_path)
    lost, alive = claimed(found, "lost"), claimed(found, "alive")
    assert not lost.judge(1, 0.25)
    other = study(tmp_path)
    assert found.requeue_lost(lambda owner: owner == "lost") == 1
    assert other.requeue_lost(lambda owner: owner == "lost") == 1
    trials = found.trials()
    assert [trial.state for trial in trials].count("lost") == 1 and len(trials) == 7
    repeated = trials[-1]
    assert repeated.state == "waiting" and repeated.repeats == lost.number and repeated.folder == lost.folder
    again = claimed(found)
    assert again.repeated and again.params == lost.params and again.folder == lost.folder
    assert again.value == 0.25 and not again.judge(1, 0.25) and not again.judge(2, 0.5)
    found.end(again, "done")
    assert found.trials()[-1].values == {1: 0.25, 2: 0.5}
    found.end(alive, "done")


def test_a_trial_that_is_lost_again_keeps_folder_and_scores(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=1)
    first = claimed(found, "a")
    first.judge(1, 0.5)
    found.requeue_lost(lambda owner: True)
    claimed(found, "b").judge(2, 0.75)
    found.requeue_lost(lambda owner: True)
    third = claimed(found, "c")
    assert (third.number, third.folder, third.value) == (2, first.folder, 0.75)
    assert third.params == first.params


def test_a_trial_that_falls_behind_is_pruned_and_none_without_pruning(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=9)
    for _ in range(LEAST_TO_COMPARE):
        trial = claimed(found)
        assert not any(trial.judge(epoch, 0.5 + epoch / 10) for epoch in (1, 2, 3))
        found.end(trial, "done")
    behind = claimed(found)
    assert not behind.judge(1, 0.1)  # warm-up
    assert behind.judge(2, 0.2)
    found.end(behind, "pruned")
    assert found.trials()[LEAST_TO_COMPARE].state == "pruned"
    never = study(tmp_path, wanted=9, warmup=None)
    assert not any(claimed(never).judge(epoch, 0.0) for epoch in (1, 2, 3))


def test_no_trial_is_pruned_by_fewer_than_enough_others(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=9)
    for number in range(LEAST_TO_COMPARE):
        trial = claimed(found)
        scores = [1.0 - number / 10] * (3 if number else 2)  # each is worse than all before
        assert not any(trial.judge(epoch, score) for epoch, score in enumerate(scores, 1))
        found.end(trial, "done")
    behind = claimed(found)
    assert behind.judge(2, 0.0)
    assert not behind.judge(3, 0.0)  # the first trial ended before this epoch, so four are left


def test_what_diverged_is_known_as_that_and_not_the_best(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=2)
    found.end(claimed(found), "diverged")
    trial = claimed(found)
    trial.judge(1, 0.125)
    found.end(trial, "done")
    assert [trial.state for trial in found.trials()] == ["diverged", "done"]
    best = best_of(found.trials())
    assert best is not None and best.number == 1 and found.last_owner() == "me"


def test_more_trials_than_in_the_beginning(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=2)
    finish(found)
    found.want(2)
    assert found.claim("me") is None
    found.want(5)
    assert len(finish(found)) == 3


def test_a_line_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    found = begun(tmp_path, wanted=3)
    trial = claimed(found)
    trial.judge(1, 0.5)
    found.end(trial, "done")
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_')
    again = study(tmp_path, wanted=3)
    assert [trial.state for trial in again.trials()] == ["done", "waiting", "waiting"]
    assert journal.read_bytes() == whole
    assert len(finish(again)) == 2


def test_a_search_without_optuna_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from horovod_yolo.core.errors import UserError

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna .*pip install 'horovod_yolo\[tune\]'"):
        study(tmp_path)
