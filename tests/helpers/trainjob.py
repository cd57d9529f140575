"""What Kubeflow Trainer's API accepts, read strictly: its models drop unknown keys.

They are those of PyPI's kubeflow-trainer-api, made from the API's own description.
Pod templates are held against Kubernetes' published schemas too, as the MPIJob's are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.mpijob import KUBERNETES, Json, kubernetes_validate

api = pytest.importorskip(
    "kubeflow_trainer_api.models", reason="LOUD SKIP: `make setup` installs kubeflow-trainer-api"
)
REFUSED = (ValueError, TypeError, AttributeError, AssertionError, kubernetes_validate.ValidationError)


def documents(path: Path) -> dict[str, Json]:
    """The objects in a file, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def check(document: Json) -> None:
    """Raise where Trainer's or Kubernetes' API would refuse an object, or drop a key of it."""
    assert document["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    model = getattr(api, f"TrainerV1alpha1{document['kind']}")
    _require_kept(document, model.from_dict(document).to_dict(), document["kind"])
    for pod in pods(document):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, KUBERNETES, strict=True)


def pods(document: Json) -> Iterator[Json]:
    """The pod templates of a runtime, by job."""
    for job in document["spec"].get("template", {}).get("spec", {}).get("replicatedJobs", ()):
        yield job["template"]["spec"]["template"]


def _require_kept(given: Any, kept: Any, where: str) -> None:
    """Raise unless all that is given is kept; defaults may come in addition."""
    if isinstance(given, dict) and isinstance(kept, dict):
        assert given.keys() <= kept.keys(), f"{where}: unknown {given.keys() - kept.keys()}"
        for key, value in given.items():
            _require_kept(value, kept[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        assert len(given) == len(kept), where
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            _require_kept(one, other, f"{where}[{number}]")
    else:
        assert type(given) is type(kept) and given == kept, f"{where}: {given!r} becomes {kept!r}"
