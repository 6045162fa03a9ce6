"""The fault matrix: one cell is a fault, at a point of a rank's life, under a layout."""

import dataclasses
import os
import random
import re
import signal
import time

import grpc

import harness
import mix
import service as faulty
from checker import check

ACTIONS = ("sigkill", "sigstop", "exit", "abort")
# start: while the first group loads; loading: while the group loads that takes over from one that
# was killed in a step.
POINTS = ("start", "loading", "prefill", "decode", "collective", "idle")
# Rank of each role, by layout; the last stage's first rank samples.
ROLES = {
    "tp=2": {"lead": 0, "another": 1},
    "pp=2": {"lead": 0, "last": 1},
    "sp=2": {"lead": 0, "another": 1},
    "tp=2,ep=2": {"lead": 0, "another": 1},
    "pp=2,tp=2": {"lead": 0, "another": 1, "last": 2},
}
MPIRUN_POINTS = ("loading", "prefill", "decode", "idle")
# So that long prompts are computed in several steps.
SERVICE_FLAGS = ("--max-step-tokens", "128", "--kv-memory", "32MiB")
# With one message between two stages a step has no second one.
NTH = {"pp=2": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    layout: str
    point: str
    action: str  # of a rank; "mpirun": mpirun is killed
    role: str

    @property
    def name(self):
        return f"{self.layout.replace(',', '.')}/{self.point}/{self.action}/{self.role}"


def matrix():
    cells = []
    for layout, roles in ROLES.items():
        for point in POINTS:
            for action in ACTIONS:
                cells.extend(Cell(layout, point, action, role) for role in roles)
        cells.extend(Cell(layout, point, "mpirun", "mpirun") for point in MPIRUN_POINTS)
    return cells


@dataclasses.dataclass
class Outcome:
    cell: Cell
    requests: int = 0
    lost: int = 0  # histories that differ
    misnamed: int = 0  # faults whose line names another rank of the group
    under_way: int = 0  # streams that the fault hit
    detection: float = 0.0  # s; the slowest of the cell's faults
    pause: float = 0.0  # s; the longest gap between two messages of a stream
    seconds: float = 0.0
    problems: list = dataclasses.field(default_factory=list)


def bound_of(fault):
    """Seconds in which it is to be found."""
    if "do=sigstop" in fault:
        return faulty.HEARTBEAT_TIMEOUT + faulty.SLACK
    return faulty.DEATH_BOUND + faulty.SLACK


def faults_of(cell, epoch):
    """The lines that arm a cell's faults for a group of that epoch and the one after it."""
    if cell.action == "mpirun":
        return [f"rank=0,epoch={epoch},at=decode,step=5,do=sigkill"] if cell.point == "loading" \
            else []
    rank = ROLES[cell.layout][cell.role]
    who = f"rank={rank},epoch={epoch}"
    if cell.point == "loading":
        other = max(ROLES[cell.layout].values()) - rank
        return [f"rank={other},epoch={epoch},at=decode,step=5,do=sigkill",
                f"rank={rank},epoch={epoch + 1},at=loading,do={cell.action}"]
    extra = {"start": "", "prefill": ",step=2", "decode": ",step=12", "idle": "",
             "collective": f",step=12,nth={NTH.get(cell.layout, 3)}"}[cell.point]
    at = "loading" if cell.point == "start" else cell.point
    return [f"{who},at={at}{extra},do={cell.action}"]


class Runner:
    """Runs cells, those of one layout on one service, and checks each."""

    def __init__(self, seed, requests, log=print):
        self.seed, self.requests, self.log = seed, requests, log
        self._moe = None
        self._references = {}  # by whether it is the mixture of experts
        self._service = self._client = None

    def close(self):
        self._end_service()
        for references in self._references.values():
            references.close()

    def _model(self, layout):
        if "ep=" not in layout:
            return harness.DEMO_MODEL
        if self._moe is None:
            self._moe = faulty.moe_model()
        return self._moe

    def references(self, layout):
        moe = "ep=" in layout
        if moe not in self._references:
            self._references[moe] = mix.References(lambda: faulty.Service(
                "tp=1", *SERVICE_FLAGS, model=self._model(layout), binary=harness.binary()))
        return self._references[moe]

    def _start_service(self, layout, faults="", wait=True):
        self._end_service()
        self._service = faulty.Service(layout, *SERVICE_FLAGS, model=self._model(layout),
                                       faults=faults, wait=wait)
        return self._service

    def _end_service(self):
        if self._client is not None:
            self._client.channel.close()
            self._client = None
        if self._service is not None:
            self._service.stop()
            self._service = None

    def _stop_cleanly(self, outcome):
        """SIGTERM: exit code 0 and nothing left."""
        service, self._service = self._service, None
        if self._client is not None:
            self._client.channel.close()
            self._client = None
        pids = list(service.processes())
        service.signal(signal.SIGTERM)
        try:
            code = service.wait(60)
            if code != 0:
                outcome.problems.append(f"exit code {code} after SIGTERM")
            left = faulty.wait_until_gone(pids) + list(service.processes())
            if left:
                outcome.problems.append(f"processes left after the service's end: {left}")
        finally:
            service.stop()

    def _ready(self, layout):
        if self._service is None or self._service.layout != layout or \
                self._service.popen.poll() is not None:
            self._start_service(layout)
        if self._client is None:
            self._client = harness.Client(self._service.endpoint)

    def run(self, cell):
        outcome = Outcome(cell)
        begin = time.monotonic()
        try:
            if cell.point == "start":
                self._run_first_start(cell, outcome)
            else:
                self._run_on_service(cell, outcome)
        except grpc.RpcError as error:
            outcome.problems.append(f"the service answers no more: {error.details()[:200]}")
        except (AssertionError, OSError, ValueError) as error:
            outcome.problems.append(str(error).split("\n", 1)[0][:1500])
        if outcome.problems or outcome.lost:
            # The next cell is not to suffer for this one.
            if self._service is not None:
                self.log("    log of the service, its last lines:\n      " +
                         "\n      ".join(self._service.lines[-25:]))
            self._end_service()
        outcome.seconds = time.monotonic() - begin
        return outcome

    def finish_layout(self, cell):
        """After the last cell of a layout: the service ends as it should."""
        outcome = Outcome(dataclasses.replace(cell, point="end", action="sigterm", role="service"))
        if self._service is not None:
            self._stop_cleanly(outcome)
        return outcome

    def _requests(self, cell):
        # A cell's requests don't depend on which cells are run with it.
        prefix = cell.name.replace("/", "-")
        requests = mix.requests(f"{self.seed} {cell.name}", self.requests, prefix)
        if cell.point == "prefill":
            # A prompt that takes several steps, whatever else was drawn.
            requests[0] = mix.make("long", f"{prefix}-0", random.Random(f"{self.seed} {prefix}"))
        return requests

    def _run_first_start(self, cell, outcome):
        service = self._start_service(cell.layout, wait=False,
                                      faults=faults_of(cell, 1)[0] + ",id=first\n")
        service.wait_for('serving "')
        self._client = harness.Client(service.endpoint)
        self._check_detection(cell, 0, 1, 0.0, outcome)
        self._check_streams(cell, [mix.Stream(self._client.stub, request)
                                   for request in self._requests(cell)], None, None, outcome)
        self._stop_cleanly(outcome)

    def _run_on_service(self, cell, outcome):
        self._ready(cell.layout)
        service, client = self._service, self._client
        status = client.wait_for_status(lambda s: s.engine.running_requests == 0 and
                                        s.state == client.pb.SERVER_STATE_SERVING)
        epoch, pids = status.epoch, {rank.rank: rank.pid for rank in status.ranks}
        old = list(pids.values()) + service.mpirun_pids()
        mark, begin = service.mark(), time.monotonic()
        lines = service.arm(*faults_of(cell, epoch))
        killed = None
        if cell.point == "idle":
            if cell.action == "mpirun":
                killed = self._kill_mpirun(service)
            else:
                os.kill(pids[ROLES[cell.layout][cell.role]], signal.SIGUSR2)
        requests = self._requests(cell)
        streams = [mix.Stream(client.stub, request) for request in requests]
        if cell.action == "mpirun" and cell.point != "idle":
            killed = self._kill_mpirun_at(cell, streams, mark)
        self._check_streams(cell, streams, begin, killed, outcome)
        self._check_detection(cell, mark, len(lines), begin, outcome)
        if killed is not None:
            self._check_mpirun_detection(cell, service, mark, killed, outcome)
        left = faulty.wait_until_gone(old)
        if left:
            outcome.problems.append(f"processes of epoch {epoch} are left: {left}")
        status = client.status()
        expected = epoch + len(lines) + (killed is not None)
        if status.epoch != expected:
            outcome.problems.append(f"the service is at epoch {status.epoch}, expected {expected}")
        if outcome.under_way == 0 and cell.point not in ("idle", "start"):
            outcome.problems.append("no stream was under way when the fault came")

    def _kill_mpirun(self, service):
        pids = service.mpirun_pids()
        if not pids:
            raise AssertionError("there is no mpirun to kill")
        for pid in pids:
            faulty.send(pid, signal.SIGKILL)
        return pids[0], time.monotonic()

    def _kill_mpirun_at(self, cell, streams, mark):
        if cell.point == "loading":
            # The mpirun of the group that takes over, as soon as it is there.
            self._service.wait_for(r"starting epoch \d+", mark)
            deadline = time.monotonic() + harness.DEADLINE
            while not self._service.mpirun_pids() and time.monotonic() < deadline:
                pass
            return self._kill_mpirun(self._service)
        if cell.point == "decode":
            streams[0].wait_for(lambda history: history.generated() >= 2)
        else:
            streams[0].wait_for(lambda history: history.of("started"))
        return self._kill_mpirun(self._service)

    def _check_streams(self, cell, streams, begin, killed, outcome):
        """`begin`: of the cell's faults, None where they all came before the streams."""
        histories = [stream.join() for stream in streams]
        fired = []
        if begin is not None:
            fired = [f.seconds for f in self._service.fired() if f.seconds >= begin]
        if killed is not None:
            fired.append(killed[1])
        references = self.references(cell.layout)
        for stream, history in zip(streams, histories):
            outcome.requests += 1
            difference = check(history, references.of(stream.request, history))
            if difference is not None:
                outcome.lost += 1
                outcome.problems.append(difference)
            times = [event.seconds for event in history.events]
            if any(stream.begun < at < times[-1] for at in fired):
                outcome.under_way += 1
            gaps = [b - a for a, b in zip([stream.begun, *times], times)]
            outcome.pause = max([outcome.pause, *gaps])

    def _check_detection(self, cell, mark, count, begin, outcome):
        """Every fault was carried out, and one line of the log names it in time."""
        service = self._service
        fired = [f for f in service.fired() if f.seconds >= begin]
        if len(fired) != count:
            outcome.problems.append(f"{len(fired)} of {count} faults were carried out")
        for fault in fired:
            before = f"died: .*; starting epoch {fault.epoch + 1}\\b|" \
                     f"did not start: .*; starting epoch {fault.epoch + 1}\\b"
            try:
                match, seconds = service.wait_for(rf"warning\] .*({before}).*", mark,
                                                  timeout=bound_of(fault.fault) + 10)
            except AssertionError:
                outcome.problems.append(f"no line says that epoch {fault.epoch} died "
                                        f"({fault.where})")
                continue
            if not re.search(rf"rank {fault.rank} \(host \S+, pid {fault.pid}\)", match.group(0)):
                outcome.misnamed += 1
                # A rank in exit() is still there when mpirun, which it has told, kills the others.
                if "do=exit" not in fault.fault:
                    outcome.problems.append(f"the line does not name rank {fault.rank}, pid "
                                            f"{fault.pid}: {match.group(0)}")
            detection = seconds - fault.seconds
            outcome.detection = max(outcome.detection, detection)
            if detection > bound_of(fault.fault):
                outcome.problems.append(f"found after {detection:.2f} s, bound "
                                        f"{bound_of(fault.fault):.2f} s: {fault.fault}")
            if fault.step > 0:
                for word in (r"step \d+", r"collective \d+"):
                    if not re.search(word, match.group(0)):
                        outcome.problems.append(f"the line has no \"{word}\": {match.group(0)}")

    def _check_mpirun_detection(self, cell, service, mark, killed, outcome):
        pid, at = killed
        if cell.point == "loading":
            # The rank that had to die before is named by a line of its own.
            mark = service.mark_after(r"starting epoch \d+", mark)
        match, seconds = service.wait_for(r".*(warning|error).*(mpirun|launcher|rank \d+ \(host).*",
                                          mark)
        if not re.search(rf"launcher \(host \S+, pid {pid}\)|mpirun was ended by signal 9",
                         match.group(0)):
            # The ranks die with mpirun's first thread, its process ends with the last.
            outcome.misnamed += 1
        outcome.detection = max(outcome.detection, seconds - at)
        if seconds - at > faulty.DEATH_BOUND + faulty.SLACK:
            outcome.problems.append(f"mpirun's death was found after {seconds - at:.2f} s")
