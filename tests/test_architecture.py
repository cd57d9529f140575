"""The rules of the design that can be read from the source: who imports whom, sizes, forbidden habits."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "horovod_yolo"
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 50

DETECTOR = {"data", "models", "losses", "metrics"}
# What a room (or single module) of horovod_yolo may import of the others, beside itself. The rooms stand in
# their order: each imports only those above it.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "io": {"core"},
    "process": {"core", "io"},
    "config": {"core", "io"},
    "data": {"core", "io", "process.allocator"},
    "models": {"core"},
    "losses": {"core"},
    "metrics": {"core", "io"},
    "families": {"core", "config", "models", "losses"},
    "distributed": {"core", "process", "models.batch_norm"},  # the base of the synchronised one
    "checkpoint": {"core", "io"},
    "export": {"core", "io", "models"},
    "training": {
        *("core", "process", "config", "data", "models.detector", "losses.criterion", "metrics.scores"),
        *("distributed", "checkpoint", "models.batch_norm"),  # what is frozen has no statistics of batches
    },
    "training.events": {"core", "metrics.scores", "training.schedule"},  # and so of no trainer
    "evaluation": {
        *("core", "process", "data", "models.detector", "models.suppression", "models.fusing"),
        *("losses.criterion", "metrics", "distributed"),
    },
    "prediction": {
        *("core", "io.fonts", "data", "models.detector", "models.suppression", "metrics", "export"),
    },
    "report": {"core", "io", "data", "metrics"},
    "telemetry": {"core", "data", "training.events", "training.schedule", "report"},
    "telemetry.report": {
        *("core", "data", "models", "metrics.mistakes", "metrics.scores", "training.events"),
        *("prediction.predict", "report"),
        "telemetry",
    },
    "install": set(),  # scripts for an environment without this package
    "errors": {"core"},  # an old public name of what the api has
    "planner": {"core", "io", "config", "families.zoo", "models.detector", "distributed"},
    "tune": {"core", "io", "config"},
    "launch": {"core", "process", "distributed.horovod_build", "distributed.launchers"},
    "launch.command": {"core", "process", "config", "launch"},
    "doctor": {"core", "launch"},
    "doctor.data_key": {"core", "data"},  # runs on the hosts that are looked at
    "doctor.trial_rank": {"distributed"},  # likewise, as a rank
    "assembly": {
        *("core", "io", "process", "config", *DETECTOR, "families.zoo", "distributed", "checkpoint"),
        *("export", "training", "evaluation", "prediction", "report", "telemetry", "planner", "tune"),
    },
    "assembly.world": {"core", "distributed", "launch"},
    "assembly.calls": {"core", "launch", "assembly"},
    "api": {
        *("core", "process", "config", "metrics.scores", "families.zoo", "distributed", "models.suppression"),
        *("export.formats", "prediction", "assembly"),
    },
    "cli": {
        "core",
        "config",
        *DETECTOR,
        "distributed",
        "checkpoint",
        "launch",
        "doctor",
        "planner",
        "assembly",
        "process.portable_bits",  # before anything of numbers is imported
    },
    "cli.report": {"core", "config", "cli", "report"},
    "cli.call": {"core", "process", "distributed", "assembly", "api"},  # a rank of a call of the api
}
MAY_IMPORT_HOROVOD = {
    "distributed/horovod_backend.py",
    "distributed/elastic.py",
}
MAY_IMPORT_TORCH_DISTRIBUTED = {
    *("distributed/torch_backend.py", "distributed/meeting.py"),
    *("launch/torch_agent.py", "launch/torch_job.py"),  # its agents and the store where they meet
}
MAY_PRINT = (
    "cli/",
    "install/horovod_edits.py",
    "assembly/job.py",
    "assembly/ending.py",
    "assembly/elastic_job.py",
)
MAY_GATHER = {
    "__init__.py",
    "cli/__init__.py",
    "data/formats/__init__.py",
}  # package files that give more than a name
SLOW_IMPORTS = {"torch", "horovod", "albumentations", "matplotlib", "cv2", "sklearn", "skimage"}
FOR_EXPORT = {
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "openvino",
    "safetensors",
}  # asked for when used
FOR_STORES = {"aiohttp", "botocore", "fsspec", "gcsfs", "s3fs"}  # likewise


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_of(path: Path) -> str:
    """Dotted name below the package; empty for the package itself."""
    parts = path.relative_to(REPOSITORY / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names of what a file imports, anywhere in it, and the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, below the package's name."""
    return {
        name.removeprefix(PACKAGE + ".") for name, _ in imports(path) if name.startswith(PACKAGE + ".")
    } - {"__version__"}


def is_within(name: str, group: str) -> bool:
    return name == group or name.startswith(group + ".")


def rule_for(module: str) -> str:
    groups = [group for group in MAY_IMPORT if is_within(module, group)]
    assert groups, f"{module} has no place in the design: give it one in MAY_IMPORT"
    return max(groups, key=len)


PACKAGE_FILES = [path for path in sources(PACKAGE) if path.name != "__init__.py"]
ALL_FILES = sources(PACKAGE, "tests", "benchmarks", "launch")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    group = rule_for(module_of(path))
    allowed = {group, *MAY_IMPORT[group]}
    wrong = {name for name in own_imports(path) if not any(is_within(name, other) for other in allowed)}
    assert not wrong, f"{group} may import {sorted(allowed)} only"


def test_rooms_stand_in_their_order() -> None:
    """No arrow runs back up, also where a single module may import more than its room."""
    order = list(dict.fromkeys(group.split(".")[0] for group in MAY_IMPORT))
    assert set(order) == {module_of(path).split(".")[0] for path in PACKAGE_FILES}
    for group, others in MAY_IMPORT.items():
        room = order.index(group.split(".")[0])
        assert all(order.index(other.split(".")[0]) <= room for other in others), group


def test_package_files_import_nothing() -> None:
    for path in sources(PACKAGE):
        if path.name == "__init__.py" and str(path.relative_to(REPOSITORY / PACKAGE)) not in MAY_GATHER:
            assert not list(imports(path)), name_of(path)


def test_only_the_composition_root_knows_everything() -> None:
    everything = {"data", "models", "losses", "distributed"}
    found = {
        str(path.relative_to(REPOSITORY / PACKAGE))
        for path in PACKAGE_FILES
        if everything <= {name.split(".")[0] for name in own_imports(path)}
    }
    # The evaluator names them too (types in signatures), but builds none of them.
    assert found == {"assembly/build.py", "evaluation/evaluator.py"}


def test_what_a_run_needs_is_constructed_in_the_composition_root_only() -> None:
    needed = {"Trainer", "Stepper", "Ema", "Loader", "StepSampler", "Schedule", "GradScaler"}
    for path in PACKAGE_FILES:
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
        }
        if path.name != "build.py":
            assert not called & needed, name_of(path)


def test_only_a_family_knows_what_it_is_made_of() -> None:
    """No name in the rooms that every family passes through tells of anchors, objectness or a loss term."""
    told = re.compile(r"anchor|objectness|(box|obj|cls|dfl)_loss", re.IGNORECASE)
    rooms = ("training", "evaluation", "distributed", "telemetry", "report", "checkpoint")
    for path in sources(*(f"{PACKAGE}/{room}" for room in rooms)):
        names = {
            name
            for node in ast.walk(tree(path))
            for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))
            if isinstance(name, str)
        }
        assert not {name for name in names if told.search(name)}, name_of(path)


@pytest.mark.parametrize(
    ("package", "may"),
    [("horovod", MAY_IMPORT_HOROVOD), ("torch.distributed", MAY_IMPORT_TORCH_DISTRIBUTED)],
)
def test_what_connects_ranks_is_imported_behind_the_protocol_only(package: str, may: set[str]) -> None:
    found = {
        str(path.relative_to(REPOSITORY / PACKAGE))
        for path in sources(PACKAGE)
        if any(is_within(name, package) for name, _ in imports(path))
    }
    assert found == may


def runtime_graph() -> dict[str, set[str]]:
    """Module -> modules it imports when it is imported: no ``TYPE_CHECKING``, nothing inside functions."""
    known = {module_of(path) for path in PACKAGE_FILES}
    graph = {}
    for path in PACKAGE_FILES:
        names = set()
        for node in tree(path).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                base = (node.module or "").removeprefix(PACKAGE).lstrip(".")
                candidates = {f"{base}.{alias.name}".lstrip(".") for alias in node.names} | {base}
                names |= candidates & known
        graph[module_of(path)] = names
    return graph


def test_no_import_cycles() -> None:
    graph = runtime_graph()
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(graph)
    assert sum(len(names) for names in graph.values()) > 100  # the graph is not empty by mistake


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    lines = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    may = str(path.relative_to(REPOSITORY / PACKAGE)).startswith(MAY_PRINT)
    assert not lines or may, f"print in lines {lines}: use logging"


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_OF_A_FILE
    long = [
        f"{node.name}: {1 + (node.end_lineno or 0) - node.lineno} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno > LINES_OF_A_FUNCTION
    ]
    assert not long


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_no_exception_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(line, ast.Pass) for line in node.body), f"line {node.lineno}"
            assert node.type is not None, f"line {node.lineno}: a bare except"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_nothing_is_evaluated_or_unpickled(path: Path) -> None:
    """No code from strings, and nothing from disk that could carry code."""
    called = {ast.unparse(n.func) for n in ast.walk(tree(path)) if isinstance(n, ast.Call)}
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.unsafe_load"}
    if path.name == "horovod_backend.py":
        forbidden -= {"pickle.loads"}  # what comes from the other ranks, which run the same program
    assert not called & forbidden
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}"


def test_the_command_line_starts_without_heavy_imports() -> None:
    """`horovod-yolo eval` and every mistake in a flag answer at once."""
    code = "import sys, horovod_yolo.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "horovod_yolo" in loaded.stdout.split()
    assert not SLOW_IMPORTS & set(loaded.stdout.split())


def test_what_exports_and_stores_need_is_imported_by_nobody_else() -> None:
    """Not when `train`, `val`, `predict` or the api start: the packages may be absent, and take seconds."""
    modules = (
        "api",
        "assembly.train",
        "assembly.predict",
        "assembly.validate",
        "assembly.export",
        "cli.export",
    )
    code = f"import sys; {'; '.join(f'import {PACKAGE}.{name}' for name in modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{PACKAGE}.assembly.export" in loaded.stdout.split()
    assert not (FOR_EXPORT | FOR_STORES) & {name.split(".")[0] for name in loaded.stdout.split()}
