"""What Prometheus reads, by its own parser, and that the Grafana file asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from horovod_yolo.telemetry.exposition import exposition
from horovod_yolo.telemetry.live import LiveRun
from horovod_yolo.training.events import RankTime

from .test_dashboard import FACTS, start, step

REPO = Path(__file__).resolve().parents[3]
GRAFANA = json.loads((REPO / "launch/monitoring/grafana.json").read_text(encoding="utf-8"))
BASE_UNITS = ("_seconds", "_ratio", "_info", "_per_second")
EVIL = 'a\\b"c\nd{e="f"} 7'


def families(folder: Path, **facts: Any) -> dict[str, Metric]:
    run = LiveRun(folder, {**FACTS, **facts}, lambda: 12.5)
    run.on_start(start())
    run.on_step(step(1, ranks=(RankTime(10, 2.0, 0.5, 0.0), RankTime(6, 2.0, 0.0, 1.0))))
    return {metric.name: metric for metric in text_string_to_metric_families(exposition(run.now()))}


def values(metric: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in metric.samples}


def test_prometheus_reads_all_of_it(tmp_path: Path) -> None:
    found = families(tmp_path)
    assert values(found["horovod_yolo_steps"]) == {(): 1.0}
    assert values(found["horovod_yolo_loss"]) == {("box",): 0.5}
    assert values(found["horovod_yolo_rank_images"]) == {("0", "a"): 10.0, ("1", "b"): 6.0}
    assert values(found["horovod_yolo_rank_images_per_second"]) == {("0", "a"): 5.0, ("1", "b"): 3.0}
    assert values(found["horovod_yolo_rank_peer_wait_seconds"]) == {("0", "a"): 0.0, ("1", "b"): 1.0}
    assert values(found["horovod_yolo_last_checkpoint_timestamp_seconds"]) == {(): 12.5}


def test_names_follow_its_rules(tmp_path: Path) -> None:
    for metric in families(tmp_path).values():
        assert re.fullmatch(r"horovod_yolo(_[a-z]+)+", metric.name), metric.name
        assert metric.type in ("counter", "gauge") and metric.documentation.endswith(".")
        assert (metric.type == "counter") == all(s.name.endswith("_total") for s in metric.samples) or not (
            metric.samples
        )
        if any(word in metric.documentation.lower() for word in ("seconds", "share")):
            assert metric.name.endswith(BASE_UNITS), metric.name


def test_labels_are_escaped(tmp_path: Path) -> None:
    (sample,) = families(tmp_path, run=EVIL)["horovod_yolo_run_info"].samples
    assert sample.labels["run"] == EVIL and sample.value == 1.0


def test_grafana_asks_for_what_is_there(tmp_path: Path) -> None:
    found = families(tmp_path)
    exported = {
        name + ("_total" if metric.type == "counter" else ""): metric for name, metric in found.items()
    }
    queries = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
    queries += [v["query"]["query"] for v in GRAFANA["templating"]["list"] if v["type"] == "query"]
    asked = set(re.findall(r"horovod_yolo_\w+", " ".join(queries)))
    assert len(asked) > 12 and asked <= exported.keys()
    for query in queries:
        for name in re.findall(r"rate\((\w+)", query):
            assert exported[name].type == "counter", query
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    unshown = {"run_info", "start_time_seconds", "epoch_progress_ratio", "images_total", "rank_images_total"}
    unshown |= {"replaced_images_total"}
    assert exported.keys() - asked == {f"horovod_yolo_{name}" for name in unshown}


def test_labels_of_grafanas_legends_are_there(tmp_path: Path) -> None:
    labels = {label for m in families(tmp_path).values() for s in m.samples for label in s.labels}
    labels |= {"instance", "metric"}  # Prometheus's own, and that of the scores, which come with a validation
    for panel in GRAFANA["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]


def test_grafanas_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    for panel in GRAFANA["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", ["8080"])
def test_the_example_for_prometheus_asks_at_the_documents_port(name: str) -> None:
    (job,) = yaml.safe_load((REPO / "launch/monitoring/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{name}"]}]
    assert f"--dashboard {name}" in (REPO / "docs/monitoring.md").read_text()
