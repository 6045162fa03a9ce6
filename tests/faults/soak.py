"""Mixed traffic in the rhythm of a real trace while ranks fail at random, all from one seed; at the
end every history is checked and nothing may have grown.

Times, prompt and answer lengths are those of the Azure conversation trace (../shared/README.md),
time compressed and lengths divided so that the demo model on a small machine keeps up.
"""

import csv
import datetime
import os
import random
import signal
import threading
import time

import grpc

import cells as matrix_cells
import harness
import mix
import service as faulty
from checker import check

TRACE = harness.SHARED / "traces" / "azure-llm-2023-conv.csv"
COMPRESSION = 1.5  # seconds of the trace in one of ours
SHRINK = 16  # tokens of the trace for one of ours
POOL = 400  # different requests
# Between two faults, seconds.
PAUSE = (4.0, 10.0)
# What may stay of a service that has been busy: allocators keep some of what was freed.
RSS_SLACK = 16 << 20
FD_SLACK = 2


def arrivals(minutes, random_):
    """[(seconds from now, prompt tokens, answer tokens)] of a part of the trace."""
    with open(TRACE, newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    length = minutes * 60 * COMPRESSION
    latest = next((i for i, at in enumerate(times) if at > times[-1] - length), 1)
    first = random_.randrange(max(1, latest))
    out = []
    for row, at in zip(rows[first:], times[first:]):
        if at - times[first] > length:
            break
        out.append(((at - times[first]) / COMPRESSION,
                    max(4, int(row["ContextTokens"]) // SHRINK),
                    max(8, int(row["GeneratedTokens"]) // SHRINK)))
    return out


class Faults(threading.Thread):
    """Makes ranks fail until told to stop."""

    def __init__(self, service, client, layout, random_):
        super().__init__(daemon=True)
        self._service, self._client, self._random = service, client, random_
        self._ranks = list(matrix_cells.ROLES[layout].values())
        self._nth = matrix_cells.NTH.get(layout, 3)
        self._ended = threading.Event()
        self.given = []
        self.failure = None

    def end(self):
        self._ended.set()
        self.join(2 * harness.DEADLINE)

    def run(self):
        try:
            while not self._ended.wait(self._random.uniform(*PAUSE)):
                self._one()
        except (AssertionError, OSError, grpc.RpcError) as error:
            self.failure = str(error)

    def _one(self):
        status = self._client.wait_for_status(
            lambda s: s.state == self._client.pb.SERVER_STATE_SERVING)
        rank, action = self._random.choice(self._ranks), self._random.choice(matrix_cells.ACTIONS)
        point = self._random.choice(("prefill", "decode", "collective", "signal", "mpirun"))
        step = self._random.randrange(1, 30)
        again = self._random.random() < 0.2
        who = f"epoch={status.epoch},rank={rank}"
        lines = []
        if point == "collective":
            lines.append(f"{who},at=collective,step={step},"
                         f"nth={self._random.randrange(1, self._nth + 1)},do={action}")
        elif point in ("prefill", "decode"):
            lines.append(f"{who},at={point},step={step},do={action}")
        elif point == "signal":
            lines.append(f"{who},at=idle,do={action}")
        if again:
            lines.append(f"epoch={status.epoch + 1},rank={self._random.choice(self._ranks)},"
                         f"at=loading,do={self._random.choice(matrix_cells.ACTIONS)}")
        self.given.append(point if point == "mpirun" else lines[0])
        mark = self._service.mark()
        self._service.arm(*lines)
        if point == "signal":
            faulty.send(next(r.pid for r in status.ranks if r.rank == rank), signal.SIGUSR2)
        if point == "mpirun":
            for pid in self._service.mpirun_pids():
                faulty.send(pid, signal.SIGKILL)
        try:
            self._service.wait_for(r"epoch \d+ .*is up", mark, timeout=15)
        except AssertionError:
            self.given[-1] += " (did not come)"  # such a step never was; the next one replaces it


def measure(service, client):
    """(resident bytes, descriptors, threads, KV blocks in use) once nothing runs."""
    status = client.wait_for_status(
        lambda s: s.engine.running_requests == 0 and s.engine.queued_requests == 0 and
        s.state == client.pb.SERVER_STATE_SERVING)
    resident, descriptors = faulty.footprint(service.pid)
    engine = status.engine
    lost = engine.kv_blocks_total - engine.kv_blocks_free - engine.kv_blocks_cached
    return {"resident": resident, "descriptors": descriptors,
            "threads": len(os.listdir(f"/proc/{service.pid}/task")),
            "blocks in use": engine.kv_blocks_in_use, "blocks lost": lost}


def drive(client, pool, schedule, random_):
    """Sends each request of the schedule at its time; the streams."""
    begin, streams = time.monotonic(), []
    pace = threading.Event()
    for number, (at, prompt, answer) in enumerate(schedule):
        pace.wait(max(0.0, begin + at - time.monotonic()))
        chosen = random_.choice(pool)
        request = mix.Request(f"soak-{number} {chosen.name}", harness.stubs().pb.GenerateRequest(),
                              chosen.cancel_after)
        request.message.CopyFrom(chosen.message)
        request.message.request_id = f"soak-{number}"
        streams.append(mix.Stream(client.stub, request, longest=600))
    return streams


def soak(layout, minutes, seed, say):
    """True where all was as it should be."""
    if not TRACE.exists():
        say(f"{TRACE} is not there: nothing was run")
        return True
    random_ = random.Random(f"soak {seed}")
    schedule = arrivals(minutes, random_)
    pool = []
    for i in range(POOL):
        _, prompt, answer = random_.choice(schedule)
        kind = mix.KINDS[i % len(mix.KINDS)]
        pool.append(mix.make(kind, f"pool-{i}", random_, answer, max(4, min(prompt, 700))))
    service = faulty.Service(layout, *matrix_cells.SERVICE_FLAGS)
    references = mix.References(lambda: faulty.Service(
        "tp=1", *matrix_cells.SERVICE_FLAGS, binary=harness.binary()))
    problems = []
    try:
        client = harness.Client(service.endpoint)
        # A few faults and all kinds of requests before the baseline: what is made once is there.
        faults = Faults(service, client, layout, random.Random(f"warm {seed}"))
        faults.start()
        warm = drive(client, pool, [(i * 0.1, 0, 0) for i in range(300)], random_)
        faults.end()
        for stream in warm:
            stream.join()
        before = measure(service, client)
        say(f"baseline after {len(warm)} requests and {len(faults.given)} faults: {before}")
        given = len(faults.given)
        faults = Faults(service, client, layout, random.Random(f"faults {seed}"))
        faults.start()
        begin = time.monotonic()
        streams = drive(client, pool, schedule, random_)
        faults.end()
        histories = [stream.join() for stream in streams]
        after = measure(service, client)
        say(f"after {time.monotonic() - begin:.0f} s, {len(streams)} requests and "
            f"{len(faults.given)} faults: {after}")
        if faults.failure:
            problems.append(f"the faults stopped: {faults.failure}")
        if after["resident"] > before["resident"] * 1.1 + RSS_SLACK:
            problems.append("the coordinator's memory has grown")
        if after["descriptors"] > before["descriptors"] + FD_SLACK:
            problems.append("the coordinator's descriptors have grown in number")
        if after["blocks in use"] or after["blocks lost"]:
            problems.append("KV blocks are not free again")
        epoch = client.status().epoch
        pids = list(service.processes())
        client.channel.close()
        service.signal(signal.SIGTERM)
        if (code := service.wait(60)) != 0:
            problems.append(f"exit code {code}")
        left = faulty.wait_until_gone(pids)
        if left or service.processes():
            problems.append(f"processes are left: {left} {service.processes()}")
        differing, tokens = 0, 0
        for stream, history in zip(warm + streams, [s.history for s in warm] + histories):
            tokens += history.generated()
            difference = check(history, references.of(stream.request, history))
            if difference is not None:
                differing += 1
                if differing <= 20:
                    problems.append(difference)
        longest = max((b.seconds - a.seconds for h in histories
                       for a, b in zip(h.events, h.events[1:])), default=0.0)
        say(f"soak of {layout}, {minutes} min, seed {seed}: {len(warm) + len(streams)} requests, "
            f"{tokens} tokens, {given + len(faults.given)} faults, {epoch} epochs, {differing} "
            f"lost, longest pause of a stream {longest:.2f} s")
    finally:
        service.stop()
        references.close()
    for problem in problems:
        say(f"  {problem}")
    return not problems
