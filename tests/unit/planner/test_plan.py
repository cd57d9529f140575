"""Plans: what follows from what, what is marked as assumed, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from horovod_yolo import cli
from horovod_yolo.core.errors import UserError
from horovod_yolo.families import zoo
from horovod_yolo.planner import assume
from horovod_yolo.planner.devices import device
from horovod_yolo.planner.fit import Calibration
from horovod_yolo.planner.links import Link, allreduce_s
from horovod_yolo.planner.measured import write
from horovod_yolo.planner.plan import Plan, Question, make_plan, measured_world, predicted_step
from horovod_yolo.planner.show import plan_json, plan_lines
from horovod_yolo.planner.workload import workload
from tests.unit.planner.test_measured import COMM, STEP

H100 = Question(
    cfg="yolov5s",
    batch=2048,
    nodes=16,
    gpus_per_node=8,
    images=100_000,
    epochs=10,
    device="h100",
    bandwidth=25e9,
    latency=5e-6,
)
CPUS = Question(cfg="yolov5n", imgsz=64, batch=128, nodes=2, gpus_per_node=1, images=1000, epochs=3)


@pytest.fixture(scope="module")
def h100() -> Plan:
    return make_plan(H100)


def test_time_and_cost_follow_from_the_step(h100: Plan) -> None:
    assert h100.steps_per_epoch == math.ceil(100_000 / 2048)
    assert h100.train_s.value == pytest.approx(10 * h100.steps_per_epoch * h100.step.value)
    assert h100.cost is None
    priced = make_plan(replace(H100, price_per_gpu_hour=3.0)).cost
    assert priced is not None
    assert priced.value == pytest.approx(3 * 128 * h100.train_s.value / 3600)


def test_what_nobody_measured_is_marked(h100: Plan) -> None:
    for figure in (h100.step, h100.efficiency, h100.train_s, h100.memory, h100.loader_cores, h100.compute):
        assert figure.basis.startswith("assumed")
    rows = [line for line in plan_lines(h100)[1:-1] if not line.startswith(("  allreduce", "  between"))]
    assert rows and all("(assumed" in row for row in rows)
    found = plan_json(h100)
    assert found["step"] == {"value": h100.step.value, "basis": "assumed"}
    assert json.loads(json.dumps(found))["links"]["between nodes"]["basis"] == "given"


def test_what_was_measured_is_marked() -> None:
    plan = make_plan(CPUS, [STEP])
    assert {plan.step.basis, plan.efficiency.basis, plan.train_s.basis} == {"measured"}
    assert plan.compute.basis == plan.memory.basis == "measured on cpu"
    assert plan.loader_cores.value == pytest.approx(plan.images_per_s / 2 / 20)
    assert plan.storage_bytes_per_s.basis == "assumed"  # how large files are


def test_a_measured_step_is_predicted_where_it_was_measured() -> None:
    """One case calibrates the network alone, and is met."""
    assert make_plan(CPUS, [STEP]).step.value == pytest.approx(STEP.step_s, rel=0.02)


@pytest.mark.parametrize(("ranks", "hosts"), [(2, 2), (8, 2), (4, 1)])
def test_measured_sums_are_those_of_the_world_made_of_them(ranks: int, hosts: int) -> None:
    times = tuple((size, 0.003 + size * 1e-7) for size in (256.0, 1e5, 1e7))
    world = measured_world(replace(COMM, ranks=ranks, hosts=hosts, allreduce=times))
    assert world.ranks == ranks and world.hosts == hosts
    assert [allreduce_s("ring", size, world) for size, _ in times] == pytest.approx([s for _, s in times])


def test_several_steps_calibrate_computation_and_network() -> None:
    """Times made by the model with factors on both are found again on a link that was not measured."""
    files = []
    for slowness in (1, 3, 9):
        comm = replace(COMM, allreduce=tuple((size, slowness * s) for size, s in COMM.allreduce))
        world = measured_world(comm)
        slower = replace(STEP.compute.scaled(1.3), update_s=1.3 * STEP.compute.update_s)
        link = world.network.scaled(1.2)
        step = predicted_step(slower, STEP.groups, replace(world, network=link), 1, Calibration())
        files.append(replace(STEP, comm=comm, step_s=step.step_s))
    plan = make_plan(replace(CPUS, bandwidth=5e6, latency=1e-3), files)
    assert plan.calibration.compute == pytest.approx(1.3, rel=0.03)
    assert plan.calibration.network == pytest.approx(1.2, rel=0.03)
    assert plan.links["between nodes"] == (Link(1e-3, 5e6), "given")


def test_sums_of_batch_norm_are_asked_for_in_addition() -> None:
    plain, synchronised = (make_plan(replace(CPUS, sync_bn=sync_bn), [STEP]) for sync_bn in (False, True))
    sums = 2 * workload("yolov5n", 80, 64, 25.0).batch_norms
    assert synchronised.exposed.value > plain.exposed.value + 0.9 * sums * 0.001 * plain.calibration.network


def test_small_sums_that_were_measured_by_themselves() -> None:
    """They go another way than gradients do; over links that are given they are not known."""
    own = replace(STEP, comm=replace(COMM, small_sum_s=1e-5), step_s=make_plan(CPUS, [STEP]).step.value)
    asked = replace(CPUS, sync_bn=True)
    sums = 2 * workload("yolov5n", 80, 64, 25.0).batch_norms
    alike = make_plan(asked, [STEP])
    saved = alike.exposed.value - make_plan(asked, [own]).exposed.value
    assert saved == pytest.approx(sums * 0.001 * alike.calibration.network, rel=0.1)
    given = replace(asked, latency=0.001, bandwidth=1e7)
    assert make_plan(given, [own]).exposed.value > sums * 0.001 * make_plan(given, [own]).calibration.network


def test_flags_go_before_measurements() -> None:
    assert make_plan(replace(CPUS, latency=0.5), [COMM, STEP]).links["between nodes"][0].latency_s == 0.5


def test_more_images_a_rank_than_measured_are_assumed() -> None:
    plan = make_plan(replace(CPUS, batch=256), [STEP])
    assert plan.compute.value > 1.8 * STEP.compute.step_s
    assert "assumed in proportion to the 64 images" in plan.compute.basis


def test_small_batches_are_accumulated_before_a_step() -> None:
    plan = make_plan(replace(CPUS, batch=16), [replace(STEP, images=8)])
    assert plan.question.windows == 4 and plan.steps_per_epoch == math.ceil(1000 / 64)
    assert plan.step.value > 4 * (STEP.compute.forward_s + STEP.compute.backward_s)


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({}, "compute"),
        ({"bandwidth": 1e7}, "network"),
        ({"batch": 200_000}, "memory"),
        ({"cores_per_node": 1}, "loader"),
        ({"storage_bandwidth": 1e6}, "storage"),
    ],
)
def test_the_first_bottleneck(changes: dict[str, float], bottleneck: str) -> None:
    assert make_plan(replace(H100, **changes)).bottleneck == bottleneck


def test_a_slower_network_makes_no_faster_plan(h100: Plan) -> None:
    slower = make_plan(replace(H100, bandwidth=1e9))
    assert slower.step.value > h100.step.value and slower.efficiency.value < h100.efficiency.value
    assert slower.compute == h100.compute
    one = make_plan(replace(H100, nodes=1, gpus_per_node=1, batch=16, bandwidth=None, latency=None))
    assert one.efficiency.value == 1 and one.network.value == 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (replace(H100, batch=100), "--batch 100, the total over all ranks, is smaller than the 128 ranks"),
        (replace(H100, device="h1000"), "--device h1000: its speed is not known"),
        (replace(H100, device=""), "neither --device nor --from"),
        (replace(H100, latency=None), "how fast are the 16 nodes connected"),
        (replace(H100, imgsz=32), "--img 32 is too small"),
        (replace(H100, cfg="yolov5q"), "unknown model 'yolov5q'"),
    ],
)
def test_questions_without_an_answer(question: Question, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(question)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "h100"}, "--device h100, but the step was measured on 'cpu'"),
        ({"cfg": "yolov5s"}, "--cfg yolov5s, but the step was measured with yolov5n"),
        ({"imgsz": 96}, "--img 96, but the step was measured with 64"),
        ({"fusion_mb": 8.0}, "--fusion-mb 8, but the groups of --from"),
        ({"precision": "bf16"}, "--precision bf16, but the step was measured with fp32"),
    ],
)
def test_other_settings_than_measured_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(replace(CPUS, **changes), [STEP])


def test_a_gpu_is_known_by_its_name_in_a_measurement() -> None:
    plan = make_plan(replace(CPUS, device="h100"), [replace(STEP, device="NVIDIA H100 80GB HBM3")])
    assert plan.memory_there == device("h100").memory_bytes


def test_the_assumptions_give_the_steps_again_that_they_come_from() -> None:
    """Lines of docs/benchmarks.md, milliseconds of 64 images on an H200."""
    for model, precision, milliseconds, gib in (
        ("yolov5n", "fp32", 99.48, 11.21),
        ("yolov5n", "bf16", 60.67, 6.07),
        ("yolov5s", "tf32", 91.91, 19.84),
        ("yolov5s", "fp32", 196.77, 20.40),
        ("yolov5s", "bf16", 85.52, 10.76),
    ):
        work = workload(model, 80, 640, 25.0)
        step = assume.compute_of(work, device("h200"), precision, 64)
        assert step.step_s == pytest.approx(milliseconds / 1e3, rel=0.13)
        assert assume.memory_of(work, precision, 64) == pytest.approx(gib * 2**30, rel=0.2)


def test_a_workload_is_counted_on_the_model() -> None:
    work = workload("yolov5n", 80, 630, 2.0)
    assert work.imgsz == 640 and work.parameters == 1_872_157
    assert work.gradient_bytes == 4 * work.parameters and len(work.groups) > 3
    assert work.forward_flops == pytest.approx(4.47e9, rel=0.01)
    ready = [group.ready for group in work.groups]
    assert ready == sorted(ready) and ready[-1] == pytest.approx(1.0)
    assert workload("yolo11n", 80, 640, 25.0).small_sums(False) == 2


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov5n", "yolov8n", "yolo11n", "yolo26n"])
def test_only_what_is_trained_has_gradients(name: str) -> None:
    work = workload(name, 80, 640, 2.0)
    model = zoo.build_model(name, 80)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    fixed = 16 if name in ("yolov8n", "yolo11n") else 0  # the weights that make a distance of 16 bins
    assert work.gradient_bytes == 4 * trained and work.parameters == trained + fixed


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(STEP, tmp_path / "step.json")
    words = "plan --cfg yolov5n --img 64 --batch 128 --nodes 2 --images 1000 --epochs 3 --json --from"
    assert cli.main([*words.split(), str(tmp_path / "step.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"]["value"] == pytest.approx(STEP.step_s, rel=0.02) and found["bottleneck"] == "compute"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bandwidth 200", "--bandwidth '200' is no number with a unit. write 200Gbit"),
        ("--latency 5", "--latency '5' is no number with a unit"),
        ("--image-size big", "--image-size 'big'"),
        ("--storage-bandwidth 1GB/h", "--storage-bandwidth '1GB/h'"),
        ("--nodes 0", "--nodes 0. give 1 or more"),
        ("--gpus-per-node -1", "--gpus-per-node -1. give 1 or more"),
        ("--img 8", "--img 8. give 32 or more"),
        ("--price-per-gpu-hour nan", "--price-per-gpu-hour nan"),
        ("--fusion-mb 1000", "--fusion-mb 1000.0. give more than 0, up to 128"),
        ("--from none.json", "none.json: cannot be read"),
        ("--bandwith 1Gbit", "unknown argument --bandwith. did you mean --bandwidth"),
    ],
)
def test_mistakes_are_one_line(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --cfg yolov5n --batch 64 --images 10 --epochs 1 --device h100"
    assert cli.main([*words.split(), *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
