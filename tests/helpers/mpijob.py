"""What the MPI Operator's API accepts, read strictly: unknown keys of a custom resource vanish silently.

The operator publishes one schema of 570 kB: its own few fields around Kubernetes' pod template. Here the pod
templates are held against Kubernetes' published schemas (the package kubernetes-validate), and the operator's
own fields against the table below, which states v2beta1 as of release 0.6. ``MPIJOB_CRD=file`` takes
the published schema itself; where the operator is installed, ``kubectl get crd mpijobs.kubeflow.org -o yaml``
prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema", reason="LOUD SKIP: `make setup` installs jsonschema")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="LOUD SKIP: `make setup` installs kubernetes-validate"
)

Json = dict[str, Any]
REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
KUBERNETES = "1.30"  # 2024; what later releases added is not used
_COUNT: Json = {"type": "integer", "minimum": 0}


def _closed(required: tuple[str, ...] = (), **properties: Json) -> Json:
    """Schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _replica(replicas: Json) -> Json:
    return _closed(
        ("replicas", "template"),
        replicas=replicas,
        restartPolicy={"enum": ["Never", "OnFailure"]},
        template=_closed(("spec",), metadata={"type": "object"}, spec={"type": "object"}),
    )


_RUN_POLICY = _closed(
    cleanPodPolicy={"enum": ["None", "Running", "All"]},
    ttlSecondsAfterFinished=_COUNT,
    activeDeadlineSeconds=_COUNT,
    backoffLimit=_COUNT,
    suspend={"type": "boolean"},
    managedBy={"type": "string"},
    schedulingPolicy=_closed(
        minAvailable=_COUNT,
        queue={"type": "string"},
        minResources={"type": "object"},
        priorityClass={"type": "string"},
        scheduleTimeoutSeconds=_COUNT,
    ),
)
_SPEC = _closed(
    ("mpiReplicaSpecs",),
    slotsPerWorker=_COUNT,
    runLauncherAsWorker={"type": "boolean"},
    runPolicy=_RUN_POLICY,
    sshAuthMountPath={"type": "string"},
    launcherCreationPolicy={"enum": ["AtStartup", "WaitForWorkersReady"]},
    mpiImplementation={"enum": ["OpenMPI", "Intel", "MPICH"]},
    mpiReplicaSpecs=_closed(
        ("Launcher",), Launcher=_replica({"const": 1}), Worker=_replica({"type": "integer", "minimum": 1})
    ),
)
MPIJOB = _closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata=_closed(("name",), name={"type": "string"}, labels={}, annotations={}, namespace={}),
    spec=_SPEC,
)


def check(job: Json) -> None:
    """Raise where the operator's or Kubernetes' API would refuse the job, or drop a key of it."""
    jsonschema.validate(job, MPIJOB)
    for replica in job["spec"]["mpiReplicaSpecs"].values():
        pod = {"apiVersion": "v1", "kind": "Pod", **replica["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def check_against_crd(job: Json, crd: Path) -> None:
    """`check` by the published schema alone."""
    versions = yaml.safe_load(crd.read_text(encoding="utf-8"))["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v2beta1"]
    jsonschema.validate(job, strict(schema))


def strict(schema: Any) -> Any:
    """A schema that refuses the keys that a custom resource's would drop."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        keeps_all = schema.get("x-kubernetes-preserve-unknown-fields", False)
        closed.setdefault("additionalProperties", bool(keeps_all))
    return closed
