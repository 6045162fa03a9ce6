"""A real Slurm of several nodes on one machine: munged, slurmctld and one slurmd per node, from
Debian's packages slurm-wlm and munge. Needs root.

Every node has mount, PID and host-name namespaces of its own (its own /tmp and /dev/shm), so that
ranks on two nodes have nothing but the network in common and a node's end takes its processes. The
network is the machine's own.
"""

import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "testing"))

import namespaces  # noqa: E402

_DEADLINE = 60


def unavailable():
    """Why this machine can't have a Slurm, or nothing."""
    if os.geteuid() != 0:
        return "needs root: slurmd, munged and namespaces"
    for program in ("munged", "slurmctld", "slurmd", "srun"):
        if shutil.which(program, path=_path()) is None:
            return f"needs {program}: launcher/install-dependencies.sh --slurm"
    if not list(pathlib.Path("/usr/lib").glob("*/slurm*/mpi_pmix.so")):
        return "needs Slurm's PMIx plugin (mpi_pmix.so)"
    trial = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"],
                           capture_output=True, text=True, check=False)
    return f"needs namespaces: {trial.stderr.strip()}" if trial.returncode != 0 else None


def _path():
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Node:
    def __init__(self, name, port):
        self.name = name
        self.port = port
        self.holder = None
        self.pid = 0


class Cluster:
    """`with Cluster({"n1": 2, "n2": 2}) as slurm: slurm.run("sbatch", …)`: nodes and their CPUs.

    `shared`: directories under /tmp that every node shall see all the same.
    """

    def __init__(self, nodes, shared=(), features=None):
        self._cpus = dict(nodes)
        self._features = features or {}
        self._shared = [pathlib.Path(path).resolve() for path in shared]
        self._scratch = tempfile.TemporaryDirectory(prefix="phalanx-slurm-")
        self.directory = pathlib.Path(self._scratch.name)
        self.directory.chmod(0o755)
        self.nodes = {name: Node(name, free_port()) for name in nodes}
        self._daemons = []
        self.environment = {**os.environ, "PATH": _path(),
                            "SLURM_CONF": str(self.directory / "slurm.conf")}
        for name in list(self.environment):
            if name.startswith("SLURM_") and name != "SLURM_CONF":
                del self.environment[name]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self):
        d = self.directory
        for name in ("state", "spool", "log", "work"):
            (d / name).mkdir()
        key = d / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._socket = d / "munge.socket"
        self._daemon(["munged", "--foreground", "--force", f"--key-file={key}",
                      f"--socket={self._socket}", f"--pid-file={d / 'munged.pid'}",
                      f"--log-file={d / 'log' / 'munged.log'}",
                      f"--seed-file={d / 'munge.seed'}", "--num-threads=2"], "munged")
        self.until(self._socket.exists, "munged's socket")
        here = socket.gethostname()
        lines = f"""
ClusterName=phalanx
SlurmctldHost={here}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self._socket}
CredType=cred/munge
StateSaveLocation={d / 'state'}
SlurmdSpoolDir={d / 'spool'}/%n
SlurmctldPidFile={d / 'slurmctld.pid'}
SlurmdPidFile={d / 'slurmd.%n.pid'}
SlurmctldLogFile={d / 'log' / 'slurmctld.log'}
SlurmdLogFile={d / 'log' / 'slurmd.%n.log'}
SlurmctldDebug=info
SlurmdDebug=info
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,requeue_setup_env_fail
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
InactiveLimit=0
KillWait=5
MessageTimeout=10
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout=10
BatchStartTimeout=10
Waittime=0
SlurmdParameters=config_overrides
TmpFS=/tmp
"""
        for name, node in self.nodes.items():
            feature = self._features.get(name)
            lines += (f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={node.port} "
                      f"CPUs={self._cpus[name]} RealMemory=1000"
                      + (f" Feature={feature}" if feature else "") + "\n")
        names = ",".join(self.nodes)
        lines += f"PartitionName=test Nodes={names} Default=YES MaxTime=60 State=UP\n"
        (d / "slurm.conf").write_text(lines.lstrip())
        (d / "hosts").write_text("127.0.0.1 localhost\n" +
                                 "".join(f"127.0.0.1 {n}\n" for n in [*self.nodes, here]))
        self._daemon(["slurmctld", "-D"], "slurmctld")
        for node in self.nodes.values():
            self._boot(node)
        self.until(lambda: self.states() == {name: "idle" for name in self.nodes},
                    lambda: f"idle nodes (they are {self.states()})")

    def _daemon(self, command, name):
        with open(self.directory / "log" / f"{name}.out", "w", encoding="utf-8") as log:
            self._daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                                  stderr=log, env=self.environment))

    def _boot(self, node):
        own = self.directory / f"own-{node.name}"
        own.mkdir(exist_ok=True)
        plan = {"name": node.name, "own": str(own), "hosts": str(self.directory / "hosts"),
                "shared": [str(p) for p in [*self._shared, self.directory]]}
        log = open(self.directory / "log" / f"{node.name}.out", "a")
        node.holder = subprocess.Popen(
            ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", sys.executable,
             __file__, json.dumps(plan)], stdin=subprocess.PIPE, stdout=log, stderr=log,
            env=self.environment)
        log.close()

    def power_off(self, name):
        """Ends the node with all its processes, at once."""
        node = self.nodes[name]
        if node.holder is None:
            return
        node.holder.kill()
        node.holder.wait()
        node.holder.stdin.close()
        node.holder = None

    def power_on(self, name):
        """As a node without disks: what was in its memory is gone."""
        shutil.rmtree(self.directory / "spool" / name, ignore_errors=True)
        shutil.rmtree(self.directory / f"own-{name}", ignore_errors=True)
        self._boot(self.nodes[name])

    def states(self):
        out = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False).stdout
        return dict(line.split() for line in out.splitlines() if len(line.split()) == 2)

    @staticmethod
    def until(condition, what, timeout=_DEADLINE):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what() if callable(what) else what} after {timeout} s")
            # Slurm's daemons tell of no event.
            time.sleep(0.05)

    def run(self, *command, check=True, timeout=90, **options):
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                                env={**self.environment, **options.pop("env", {})}, check=False,
                                stdin=subprocess.DEVNULL, **options)
        if check and result.returncode != 0:
            raise AssertionError(f"{command}: code {result.returncode}: {result.stderr}")
        return result

    def submit(self, *arguments, **options):
        """sbatch; the job's id."""
        out = self.run("sbatch", "--parsable", *arguments, **options).stdout
        return out.strip().split(";")[0]

    def job(self, job):
        """{"JobState": "RUNNING", "ExitCode": "0:0", …}"""
        out = self.run("scontrol", "-o", "show", "job", job).stdout
        return dict(re.findall(r"(\w+)=(\S+)", out))

    def wait_for_state(self, job, *states, timeout=_DEADLINE):
        last = {}

        def reached():
            last.update(self.job(job))
            return last["JobState"] in states

        self.until(reached, lambda: f"{states} of job {job}: {last}", timeout)
        return last

    def wait_for_node(self, name, state, timeout=_DEADLINE):
        self.until(lambda: self.states().get(name, "").rstrip("*") == state,
                   lambda: f"node {name} {state} (it is {self.states()})", timeout)

    def pids(self, name):
        """The node's processes but its first ones: {pid as the test sees it: command line}."""
        holder = self.nodes[name].holder
        children = pathlib.Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        first = int(children.split()[0])
        space = os.readlink(f"/proc/{first}/ns/pid")
        out = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == first:
                continue
            try:
                if os.readlink(entry / "ns/pid") != space:
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
                line = b" ".join(words).decode(errors="replace")
            except OSError:
                continue
            if line and not line.startswith("slurmd "):
                out[int(entry.name)] = line.strip()
        return out

    def ours(self, name, binary):
        """The node's processes that a job of ours has left: ranks and what starts them."""
        words = ("srun ", "mpirun ", "orted ", str(binary))
        return [line for line in self.pids(name).values() if line.startswith(words)]

    def logs(self):
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-2000:]}"
                         for p in sorted((self.directory / "log").iterdir()))

    def stop(self):
        for name in self.nodes:
            self.power_off(name)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []
        self._scratch.cleanup()


def _run_node(plan):
    """The first process of a node. Ends, and all of the node with it, when the test closes its
    stdin."""
    namespaces.become_host(plan)
    slurmd = subprocess.Popen(["slurmd", "-D", "-N", plan["name"]], stdin=subprocess.DEVNULL)
    # Reaps what daemons leave behind, too.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(_wakeup[1], warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([sys.stdin, _wakeup[0]], [], [])
        if sys.stdin in ready and not sys.stdin.buffer.read1():
            os._exit(0)
        if _wakeup[0] in ready:
            os.read(_wakeup[0], 4096)
        try:
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == slurmd.pid:
                    os._exit(1)
        except ChildProcessError:
            os._exit(1)


if __name__ == "__main__":
    _wakeup = os.pipe()
    os.set_blocking(_wakeup[1], False)
    os.set_blocking(_wakeup[0], False)
    _run_node(json.loads(sys.argv[1]))
