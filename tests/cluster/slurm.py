"""A real Slurm on test hosts: munged and slurmctld on host1, slurmd on every host."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import Cluster, Host

PACKAGES = "slurmctld slurmd slurm-client munge libpmix-dev"  # the last for `srun --mpi=pmix`
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged")


def why_not() -> str | None:
    """Why there is no Slurm here; None where there is one."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin") is None]
    return f"Slurm's {', '.join(missing)} missing: apt-get install {PACKAGES}" if missing else None


class Slurm:
    """Slurm over the hosts of a cluster; submit and ask on host1.

    Args:
        cluster: switched on, with a folder that all hosts see.
        cpus: of each node, whatever the machine has.
        gpus: of each node likewise. Jobs that ask for them can be planned, but not started.
    """

    def __init__(self, cluster: Cluster, cpus: int = 4, gpus: int = 0) -> None:
        self._cluster = cluster
        self._folder = cluster.folder / "slurm"
        self._cpus, self._gpus = cpus, gpus
        self.hosts: list[Host] = list(cluster)
        self.head = self.hosts[0]

    def __enter__(self) -> Slurm:
        folder, hosts = self._folder, list(self._cluster)
        etc = folder / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        nodes = f"host[1-{len(hosts)}]"
        has = f"CPUs={self._cpus}" + (f" Gres=gpu:{self._gpus}" if self._gpus else "")
        (etc / "slurm.conf").write_text(_CONF.format(folder=folder, nodes=nodes, has=has))
        if self._gpus:
            (etc / "gres.conf").write_text(f"NodeName={nodes} Name=gpu File=/dev/tty[1-{self._gpus}]\n")
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        names = ("key-file=munge.key", "socket=socket", "pid-file=munge.pid", "log-file=munge.log")
        files = [f"--{name.replace('=', f'={folder}/')}" for name in (*names, "seed-file=munge.seed")]
        self._demand(self.head, ["munged", "--force", *files])
        for host in hosts:
            (folder / f"tmp-{host.name}").mkdir(exist_ok=True)
            host.bind(etc, "/etc/slurm")
        self._demand(self.head, ["slurmctld"])
        for host in hosts:
            self._demand(host, ["slurmd"])
        self._wait_for_nodes(len(hosts))
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: the daemons end with their hosts."""

    def _demand(self, host: Host, argv: Sequence[str]) -> None:
        done = host.run(argv)
        if done.returncode:
            raise RuntimeError(f"{host.name}: {' '.join(argv)}: {done.stdout}")

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            states = self.ask(["sinfo", "-h", "-N", "-o", "%T"]).split()
            if states.count("idle") == count:
                return
            if time.monotonic() > deadline:
                logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in self._folder.glob("*.log")]
                raise RuntimeError(f"the nodes are {states}, not idle\n" + "\n".join(logs))
            time.sleep(0.5)

    def ask(self, argv: Sequence[str | Path]) -> str:
        """What a command of Slurm prints on host1."""
        return self.head.run(argv).stdout

    def state(self, job: int) -> str:
        """Of a job: PENDING, RUNNING, COMPLETED, ..."""
        shown = self.ask(["scontrol", "-o", "show", "job", str(job)])
        return next((word[9:] for word in shown.split() if word.startswith("JobState=")), shown)

    def wait(self, job: int, states: Sequence[str], timeout: float) -> str:
        """Wait until a job is in one of ``states``; which one."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is {state} after {timeout} s, not {' or '.join(states)}")
            time.sleep(0.5)
        return state


_CONF = """
ClusterName=test
SlurmctldHost=host1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
TmpFS={folder}/tmp-%n
KillWait=5
MinJobAge=300
OverTimeLimit=0
SchedulerParameters=sched_interval=5
JobRequeue=1
GresTypes=gpu
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName={nodes} {has} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
