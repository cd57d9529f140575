"""Whole searches in one process: real runs of a tiny model, real journal, real files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from horovod_yolo.assembly.owner import OWNERS, Owner
from horovod_yolo.assembly.run import new_run
from horovod_yolo.assembly.search import Search, TuneOptions, open_search
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.tune import tune
from horovod_yolo.config.load import load_hyp, train_parser
from horovod_yolo.core.errors import PrunedError, StoppedError, UserError
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.tune.outcome import Outcome
from tests.helpers.runs import checkpoint, sha256
from tests.helpers.world import WorldCommunicator, run_world

pytestmark = pytest.mark.usefixtures("tiny")

ALONE = LocalCommunicator()
SPACE = "lr0: {low: 1.0e-3, high: 0.1, log: true}\nfliplr: {low: 0, high: 1}\n"


@pytest.fixture
def flags(digits: Path, tmp_path: Path) -> dict[str, Any]:
    place = {"project": str(tmp_path / "tune"), "name": "exp"}
    small = {"imgsz": 64, "batch_size": 14, "epochs": 2, "workers": 0, "noautoanchor": True, "seed": 3}
    return {"data": str(digits), "cfg": "tiny", **place, **small}


@pytest.fixture
def space(tmp_path: Path) -> str:
    (tmp_path / "space.yaml").write_text(SPACE)
    return str(tmp_path / "space.yaml")


def searched(search: Search, comm: Any = ALONE) -> Outcome:
    return tune(search, comm, StopRequest(), shown=False)[0]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def told(outcome: Outcome) -> list[tuple[Any, ...]]:
    """What does not depend on time."""
    return [(t.state, dict(t.params), dict(t.values), t.value) for t in outcome.trials if t.state != "lost"]


def test_a_search_leaves_its_trials_and_the_best_hyperparameters(flags: dict[str, Any], space: str) -> None:
    search = open_search(TuneOptions(flags=flags, trials=3, space=space), ALONE)
    outcome = searched(search)
    assert [trial.state for trial in outcome.trials] == ["done"] * 3
    assert outcome.trials[0].params == {"lr0": 0.01, "fliplr": 0.5}
    for trial in outcome.trials:
        state = checkpoint(search.folder / trial.folder)
        assert {name: state["config"]["hyp"][name] for name in trial.params} == trial.params
        assert state["epoch"] == 2 and set(trial.values) == {1, 2}
    assert outcome.best is not None and outcome.best.value == max(t.value or 0.0 for t in outcome.trials)
    hyp = load_hyp(search.folder / "best.yaml", zoo.recipe_of("tiny").hyp)
    assert {name: getattr(hyp, name) for name in outcome.best.params} == outcome.best.params
    table = rows(search.folder)
    assert [float(row["value"]) for row in table] == [trial.value for trial in outcome.trials]
    assert [row["folder"] for row in table] == ["trial_0000", "trial_0001", "trial_0002"]
    assert not list((search.folder / OWNERS).iterdir())
    words = outcome.command.split()
    given = vars(train_parser().parse_strictly(words[2:]))
    assert given["hyp"] == str(search.folder / "best.yaml") and given["epochs"] == 2
    assert any("3 trials: 3 done" in line for line in outcome.lines())


def test_a_search_that_was_stopped_ends_as_if_it_was_not(flags: dict[str, Any], space: str) -> None:
    undisturbed = searched(open_search(TuneOptions(flags=flags, trials=3, space=space), ALONE))
    search = open_search(TuneOptions(flags={**flags, "name": "other"}, trials=3, space=space), ALONE)
    stop = StopRequest()

    class Stopping(LocalCommunicator):
        """Asks to stop in the second trial, when it is judged for the first time."""

        judged = 0

        def broadcast_object(self, value: Any) -> Any:
            if value is False:
                self.judged += 1
                if self.judged == 3:
                    stop.ask()
            return value

    with pytest.raises(
        StoppedError, match=r"in trial 1, .*the search: horovod-yolo tune --resume"
    ) as stopped:
        tune(search, Stopping(), stop, shown=False)
    assert stopped.value.saved
    again = open_search(TuneOptions(flags={"workers": 0}, resume=str(search.folder)), ALONE)
    outcome = searched(again)
    assert [t.state for t in outcome.trials] == ["done", "lost", "done", "done"]
    resumed = sorted(told(outcome), key=str)
    assert resumed == sorted(told(undisturbed), key=str)
    for trial in undisturbed.trials:
        same = next(t for t in outcome.trials if t.params == trial.params and t.state == "done")
        assert sha256(again.folder / same.folder) == sha256(undisturbed.folder / trial.folder)


def test_ranks_search_together(flags: dict[str, Any], space: str) -> None:
    def job(comm: WorldCommunicator) -> tuple[Outcome, bool]:
        search = open_search(TuneOptions(flags=flags, trials=2, space=space), comm)
        return tune(search, comm, StopRequest(), shown=False)

    (one, tells), (two, _) = run_world(2, job)
    assert tells and told(one) == told(two) and [t.state for t in one.trials] == ["done", "done"]


def test_a_trial_that_falls_behind_ends_on_all_ranks(flags: dict[str, Any], tmp_path: Path) -> None:
    """Rank 0 alone has the journal, with five trials that were better than this model can be."""
    (tmp_path / "short.yaml").write_text(SPACE + "warmup_epochs: {choices: [0, 1]}\n")
    options = TuneOptions(
        flags={**flags, "epochs": 4}, trials=6, space=str(tmp_path / "short.yaml"), prune=True
    )
    folder = open_search(options, ALONE).folder
    study = open_search(TuneOptions(resume=str(folder)), ALONE).study()
    for _ in range(5):
        better = study.claim("another job")
        assert better is not None and not any(better.judge(epoch, 0.9) for epoch in range(1, 5))
        study.end(better, "done")

    def job(comm: WorldCommunicator) -> tuple[Outcome, bool]:
        return tune(open_search(TuneOptions(resume=str(folder)), comm), comm, StopRequest(), shown=False)

    for outcome, tells in run_world(2, job):
        last = outcome.trials[5]
        assert tells and last.state == "pruned" and set(last.values) == {1, 2, 3}
    state = checkpoint(folder / last.folder)
    assert state["epoch"] == 3 and not (folder / last.folder / "results.json").exists()


def test_a_run_is_given_up_on_all_ranks_alike_and_has_its_checkpoint(flags: dict[str, Any]) -> None:
    def job(comm: WorldCommunicator) -> Path:
        run = new_run(settings_of({**flags, "epochs": 3, "noplots": True}), comm)
        judged = replace(run, judge=lambda epoch, score: comm.broadcast_object(comm.rank == 0 and epoch == 2))
        with pytest.raises(PrunedError, match="after epoch 2"):
            train(judged, comm)
        return run.folder

    folder = run_world(2, job)[0]
    state = checkpoint(folder)
    assert state["epoch"] == 2 and not (folder / "results.json").exists()


@pytest.mark.parametrize(
    ("epochs", "ranges", "first"),
    [
        (10, SPACE, 6),  # half of the epochs are over
        (9, SPACE, 6),
        (4, SPACE, 4),  # the three epochs of warm-up by default are over
        (3, SPACE, None),
        (8, "warmup_epochs: {low: 0, high: 5.5}", 7),  # no trial warms up longer
        (8, "warmup_epochs: {choices: [6, 2]}", 7),
        (8, "warmup_epochs: {choices: [8, 2]}", None),
    ],
)
def test_a_trial_is_pruned_when_its_scores_say_enough(
    flags: dict[str, Any], tmp_path: Path, epochs: int, ranges: str, first: int | None
) -> None:
    (tmp_path / "ranges.yaml").write_text(ranges)
    options = TuneOptions(
        flags={**flags, "epochs": epochs}, trials=6, space=str(tmp_path / "ranges.yaml"), prune=True
    )
    study = open_search(options, ALONE).study()

    def pruned_after(score: float) -> int | None:
        trial = study.claim("me")
        assert trial is not None
        found = next((epoch for epoch in range(1, epochs + 1) if trial.judge(epoch, score)), None)
        study.end(trial, "done" if found is None else "pruned")
        return found

    assert [pruned_after(0.5) for _ in range(5)] == [None] * 5
    assert pruned_after(0.25) == first


def test_a_job_that_is_gone_is_seen(tmp_path: Path) -> None:
    one, two = Owner(tmp_path), Owner(tmp_path)
    assert not one.is_lost(one.name) and not one.is_lost(two.name)
    two.release()
    assert one.is_lost(two.name) and one.is_lost("never")
    dead = tmp_path / OWNERS / "dead"
    dead.write_text((tmp_path / OWNERS / one.name).read_text().replace('"began": "', '"began": "1'))
    assert one.is_lost("dead")
    elsewhere = tmp_path / OWNERS / "elsewhere"
    elsewhere.write_text('{"place": "another host"}')
    assert not one.is_lost("elsewhere")  # it is watched from here on
    one._since["elsewhere"] = (elsewhere.stat().st_mtime_ns, -1e9)
    assert one.is_lost("elsewhere")
    elsewhere.write_text('{"place": "another host", "touched": 1}')
    assert not one.is_lost("elsewhere")
    one.release()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "--trials is 0"),
        ({"flags": {"elastic": True}}, "--elastic is not for a search"),
        ({"ranks_per_trial": 2, "flags": {"dashboard": "0"}}, "--dashboard and --ranks-per-trial exclude"),
        ({"resume": "nowhere"}, "nowhere: no search is in this folder"),
        ({"resume": "newest", "flags": {"project": "nothing"}}, "nothing: no search to go on with"),
        ({"resume": "nowhere", "space": "x"}, "--space is of a new search"),
        ({"resume": "nowhere", "prune": False}, "--no-prune is of a new search"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_search(TuneOptions(**options), ALONE)


def test_a_search_goes_on_with_its_own_settings(flags: dict[str, Any], space: str, tmp_path: Path) -> None:
    search = open_search(TuneOptions(flags=flags, trials=2, space=space, prune=False), ALONE)
    place = {"project": flags["project"]}
    again = open_search(TuneOptions(flags={**place, "workers": 1}, resume="newest"), ALONE)
    assert again == replace(search, flags={**search.flags, "workers": 1})
    with pytest.raises(UserError, match="--epochs differs from the search's 2"):
        open_search(TuneOptions(flags={"epochs": 3}, resume=str(search.folder)), ALONE)
    with pytest.raises(UserError, match="a search is there already"):
        open_search(TuneOptions(flags={**flags, "exist_ok": True}, space=space), ALONE)
    settings = search.folder / "tune.yaml"
    said = yaml.safe_load(settings.read_text())
    for damage in ({"format_version": 2}, {"space": {"lr0": 1}}, {"flags": None}):
        settings.write_text(yaml.safe_dump({**said, **damage}))
        with pytest.raises(UserError, match=r"tune\.yaml"):
            open_search(TuneOptions(resume=str(search.folder)), ALONE)


def test_nothing_is_left_of_a_search_that_cannot_begin(flags: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("lr0: 1")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        open_search(TuneOptions(flags=flags, space=str(bad)), ALONE)
    assert not Path(flags["project"]).exists()
