#!/usr/bin/env python3
"""The edits that make Horovod 0.28.1's sources build on today's stack, and mends of its Gloo code.

Run as ``horovod_edits.py SOURCE_DIR``. Standard library only: it runs before anything is installed.
Every edit must match exactly once; nothing is written unless all of them do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from horovod_rendezvous import RENDEZVOUS


class Edit(NamedTuple):
    """Replace ``old`` by ``new``, once, in ``file`` (relative to the source folder)."""

    file: str
    old: str
    new: str
    why: str


class EditError(ValueError):
    """An edit did not match exactly once: these are not the sources it was written for."""


EDITS = (
    Edit(
        "CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "torch >= 2.1 needs C++17; one standard everywhere, or gloo is compiled twice and the link fails",
    ),
    Edit(
        "CMakeLists.txt",
        "set(CMAKE_CXX_EXTENSIONS OFF)\n",
        "set(CMAKE_CXX_EXTENSIONS OFF)\n"
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH TRUE)\n"
        'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../.." "$ORIGIN/../../torch/lib")\n'
        "set(CMAKE_INSTALL_RPATH_USE_LINK_PATH TRUE)\n",
        "a cached wheel must find the MPI and torch of the environment it is installed in",
    ),
    Edit(
        "horovod/torch/CMakeLists.txt",
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 17)",
        "torch >= 2.1 needs C++17",
    ),
    Edit(
        "horovod/common/common.h",
        "#include <memory>\n#include <string>\n",
        "#include <memory>\n#include <stdexcept>\n#include <string>\n",
        "GCC >= 13 no longer includes it by the way",
    ),
    Edit(
        "horovod/common/group_table.h",
        "#include <queue>\n",
        "#include <queue>\n#include <string>\n",
        "GCC >= 13 no longer includes it by the way",
    ),
    Edit(
        "horovod/torch/cuda_util.cc",
        'dlopen("libcuda.so", RTLD_LAZY)',
        'dlopen("libcuda.so.1", RTLD_LAZY)',
        "the driver installs libcuda.so.1; the bare name comes with a toolkit only",
    ),
    Edit(
        "horovod/runner/js_run.py",
        "from distutils.spawn import find_executable\n",
        "from shutil import which as find_executable\n",
        "Python 3.12 has no distutils, and horovodrun imports this module",
    ),
    Edit(
        "horovod/torch/CMakeLists.txt",
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        "import sysconfig; print(sysconfig.get_path('include'))",
        "Python 3.12 has no distutils",
    ),
    Edit(
        "third_party/gloo/CMakeLists.txt",
        "cmake_minimum_required(VERSION 2.8.12 FATAL_ERROR)",
        "cmake_minimum_required(VERSION 3.13 FATAL_ERROR)",
        "CMake >= 4 refuses projects written for less than 3.5",
    ),
    Edit(
        "cmake/Modules/FindNCCL.cmake",
        'set(NCCL_LIBNAME "nccl")',
        "set(NCCL_LIBNAME nccl libnccl.so.2)",
        "the pip wheel of NCCL has libnccl.so.2 and no libnccl.so",
    ),
    Edit(
        "horovod/common/gloo/gloo_context.cc",
        "  assert(global_context.IsEnabled());\n",
        "  assert(global_context.IsEnabled());\n  Enable();\n",
        "without it Finalize() returns early: a survivor's sockets stay open and others wait for a time-out",
    ),
    Edit(
        "horovod/common/gloo/gloo_context.cc",
        "  device_attr.iface = gloo_iface_;\n"
        "  device_attr.ai_family = AF_UNSPEC;\n"
        "  auto dev = CreateDevice(device_attr);\n"
        "\n"
        "  global_ctx = global_context.ctx;\n",
        "  gloo_iface_ = global_context.gloo_iface_;\n"
        "  device_attr.iface = gloo_iface_;\n"
        "  device_attr.ai_family = AF_UNSPEC;\n"
        "  auto dev = CreateDevice(device_attr);\n"
        "\n"
        "  global_ctx = global_context.ctx;\n",
        "a process set bound to the host name's address, whatever --network-interfaces said",
    ),
    Edit(
        "horovod/common/gloo/gloo_controller.cc",
        "global_ranks_.reserve(size_);",
        "global_ranks_.resize(size_);",
        "the vector stayed empty, so the stall check could not name a rank and never ended a job",
    ),
    Edit(
        "horovod/common/operations.cc",
        "#if HAVE_GLOO\n#if HAVE_MPI\n  if (global_mpi_context.IsEnabled()) {\n"
        "    // Initialize gloo context if mpi context is available\n",
        "#if HAVE_GLOO\n  try {\n#if HAVE_MPI\n  if (global_mpi_context.IsEnabled()) {\n"
        "    // Initialize gloo context if mpi context is available\n",
        "a rendezvous that failed ended the process; now init fails, and an elastic job tries again",
    ),
    Edit(
        "horovod/common/operations.cc",
        "    state.process_set_table.Initialize(global_gloo_context);\n  }\n#endif // HAVE_GLOO\n",
        "    state.process_set_table.Initialize(global_gloo_context);\n  }\n"
        "  } catch (const std::exception& ex) {\n"
        '    LOG(WARNING) << "Horovod could not be initialized: " << ex.what();\n'
        "    if (state.control_operation == LibType::GLOO) {\n"
        "      state.process_set_table.Finalize(global_gloo_context, SHUT_DOWN_ERROR);\n"
        "    }\n"
        "    global_gloo_context.Finalize();\n"
        "    state.initialization_failed = true;\n"
        "    return;\n"
        "  }\n#endif // HAVE_GLOO\n",
        "the end of that try: sockets are closed, and the next init asks the launcher for its rank anew",
    ),
    Edit(
        "horovod/common/operations.cc",
        "    horovod_global.initialization_done = false;\n    horovod_global.background_thread =\n",
        "    horovod_global.initialization_done = false;\n"
        "    horovod_global.initialization_failed = false;\n    horovod_global.background_thread =\n",
        "without it no init after a failed one could succeed",
    ),
    *(
        Edit(
            "horovod/common/util.py",
            f"def {library}_built(verbose=False):\n",
            f"def {library}_built(verbose=False):\n    return True\n",
            "horovodrun asked a process that imports torch before each job; install_horovod.sh asks once",
        )
        for library in ("gloo", "mpi")
    ),
    Edit(
        "horovod/runner/util/remote.py",
        "'ssh -o PasswordAuthentication=no -o StrictHostKeyChecking=no'",
        "'ssh -o PasswordAuthentication=no -o StrictHostKeyChecking=no "
        "-o ServerAliveInterval=4 -o ServerAliveCountMax=3'",
        "the ssh session is how horovodrun learns that a host is dead; without keep-alives it never does",
    ),
    Edit(
        "horovod/runner/driver/driver_service.py",
        "    if len(remote_host_names) > 0:\n",
        "    if len(remote_host_names) > 0 or (settings.elastic and settings.nics):\n",
        "an elastic job that began on the launcher's own host alone was refused: that card is not lo",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "                            for host, slots in self._host_assignments.items()\n"
        "                            for slot_info in slots])\n",
        "                            for host, slots in self._host_assignments.items()\n"
        "                            if host not in {h for h, _ in self._worker_registry.get('FAILURE')}\n"
        "                            for slot_info in slots])\n",
        "a host that failed and came back before there were enough hosts counted as still running",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "        self._world_size = 0\n\n",
        "        self._world_size = 0\n        self._running = 0\n\n",
        "counts the workers that run, for the next two",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "        def run_worker():\n"
        "            res = create_worker_fn(slot_info, [shutdown_event, host_event])\n",
        "        with self._wait_hosts_cond:\n            self._running += 1\n\n"
        "        def run_worker():\n"
        "            res = create_worker_fn(slot_info, [shutdown_event, host_event])\n"
        "            with self._wait_hosts_cond:\n                self._running -= 1\n"
        "                self._wait_hosts_cond.notify_all()\n",
        "a worker that ends is news to whoever waits for hosts",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "                    return current_hosts\n",
        "                    return current_hosts\n"
        "                if self._host_assignments and self._running == 0:\n"
        "                    raise RuntimeError('No worker is left that could go on.')\n",
        "workers that gave up waiting for hosts left horovodrun waiting alone, up to its --elastic-timeout",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "            coordinator_client.notify_hosts_updated(timestamp, update_res)\n",
        "            threading.Thread(target=_quietly, daemon=True, args=(\n"
        "                coordinator_client.notify_hosts_updated, timestamp, update_res)).start()\n",
        "rank 0 may be on the host that is lost: horovodrun stood still for minutes while it called there",
    ),
    Edit(
        "horovod/runner/elastic/driver.py",
        "def _epoch_time_s():\n    return int(time.time())\n",
        "def _epoch_time_s():\n    return int(time.time())\n\n\n"
        "def _quietly(call, *args):\n    try:\n        call(*args)\n"
        "    except Exception as error:\n        logging.debug('not notified: %s', error)\n",
        "what that thread does",
    ),
    Edit(
        "horovod/runner/elastic/registration.py",
        "        self._action_event.wait()\n",
        "        self._action_event.wait()\n"
        "        if self._driver.finished():\n            return self._rendezvous_id\n",
        "a worker that ended while horovodrun gave up was waited for without end",
    ),
    Edit(
        "horovod/runner/elastic/registration.py",
        "        key = (host, slot)\n        with self._lock:\n",
        "        key = (host, slot)\n        with self._lock:\n"
        "            is_counted = key in self._states and state != FAILURE\n",
        "a worker that said twice that it was ready, or did after it was lost, counted as another worker too",
    ),
    Edit(
        "horovod/runner/elastic/registration.py",
        "        rendezvous_id = self._wait(key, state, rendezvous_id)\n",
        "        while is_counted and rendezvous_id == self._rendezvous_id and not self._driver.finished():\n"
        "            time.sleep(0.1)\n"
        "        if not is_counted:\n"
        "            rendezvous_id = self._wait(key, state, rendezvous_id)\n",
        "it waits for the others without: a job with healthy ranks was ended as if all were lost",
    ),
    Edit(
        "horovod/runner/elastic/registration.py",
        "import threading\n",
        "import threading\nimport time\n",
        "for that wait",
    ),
    *(Edit(*one) for one in RENDEZVOUS),
)


def edited_texts(root: Path, edits: Sequence[Edit]) -> dict[Path, str]:
    """The new text of every file that the edits touch; nothing is written.

    Raises:
        EditError: a file is missing, or holds an edit's old text not exactly once.
    """
    texts: dict[Path, str] = {}
    for edit in edits:
        path = root / edit.file
        if path not in texts:
            if not path.is_file():
                raise EditError(f"{edit.file}: no such file in {root}; it should hold {edit.old!r}")
            texts[path] = path.read_text(encoding="utf-8")
        found = texts[path].count(edit.old)
        if found != 1:
            raise EditError(f"{edit.file}: {found} matches instead of 1 for {edit.old!r}")
        texts[path] = texts[path].replace(edit.old, edit.new)
    return texts


def apply_edits(root: Path, edits: Sequence[Edit] = EDITS) -> None:
    """Edit the sources under ``root`` in place, all of them or none.

    Raises:
        EditError: as in :func:`edited_texts`.
    """
    for path, text in edited_texts(root, edits).items():
        path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Command line: one argument, the folder of the unpacked sources."""
    if len(argv) != 1:
        print("usage: horovod_edits.py SOURCE_DIR", file=sys.stderr)
        return 2
    try:
        apply_edits(Path(argv[0]))
    except EditError as error:
        print(f"horovod_edits: {error}. Nothing was changed", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
