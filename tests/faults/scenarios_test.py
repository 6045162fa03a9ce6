#!/usr/bin/env python3
"""Faults that are no cell of the matrix, each with the end that is promised for it.

    scenarios_test.py [--phalanx PATH] [unittest's arguments]

PATH is the binary that is shipped; phalanx_with_faults lies beside it.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True

import service as faulty  # noqa: E402  (makes tests/e2e importable)
import harness  # noqa: E402
import mix  # noqa: E402
from checker import check  # noqa: E402

POISON = 1000  # a token id that no other prompt here has


class Scenario(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        faulty.use(pathlib.Path(harness.binary()).parent)
        cls.references = mix.References(
            lambda: faulty.Service("tp=1", "--kv-memory", "32MiB", binary=harness.binary()))
        cls.addClassCleanup(cls.references.close)

    def start(self, layout="tp=2", *flags, **options):
        service = faulty.Service(layout, "--kv-memory", "32MiB", *flags, **options)
        self.addCleanup(service.stop)
        self.service = service
        if options.get("wait", True):
            self.client = self.connect(service)
        return service

    def connect(self, service):
        client = harness.Client(service.endpoint)
        self.addCleanup(client.channel.close)
        return client

    def stream(self, request):
        return mix.Stream(self.client.stub, request)

    def endless(self, name, text="Once upon a time", **sampling):
        """Some thousand tokens: under way until something ends it."""
        sampling = {"max_tokens": 1900, "n": 4, "temperature": 1.0, "seed": 5, "logprobs": 1,
                    "ignore_eos": True, **sampling}
        pb = harness.stubs().pb
        return mix.Request(name, pb.GenerateRequest(
            request_id=name, text=text, sampling=pb.SamplingParams(**sampling)))

    def begin(self, request, tokens=4):
        stream = self.stream(request)
        stream.wait_for(lambda history: history.generated() >= tokens)
        return stream

    def assert_exact(self, streams):
        for stream in streams:
            history = stream.join()
            self.assertIsNone(check(history, self.references.of(stream.request, history)))

    def assert_nothing_left(self, pids, timeout=faulty.GONE_BOUND):
        deadline = time.monotonic() + timeout
        left = faulty.wait_until_gone(pids, timeout)
        self.assertEqual([(pid, pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()[:80])
                          for pid in left], [])
        # And what was started after the list was made.
        while (young := self.service.processes()) and time.monotonic() < deadline:
            faulty.wait_until_gone(young, deadline - time.monotonic())
        self.assertEqual(self.service.processes(), {})

    def pids(self):
        return {rank.rank: rank.pid for rank in self.client.status().ranks}

    def epoch(self):
        return self.client.status().epoch


class Recovery(Scenario):
    def test_a_second_death_during_recovery_and_a_third(self):
        self.start("tp=2")
        self.service.arm("rank=1,epoch=1,at=decode,step=9,do=sigkill",
                         "rank=0,epoch=2,at=loading,do=abort",
                         "rank=1,epoch=3,at=loading,part=0.1,do=exit")
        streams = [self.stream(r) for r in mix.requests("thrice", 6, "thrice")]
        self.assert_exact(streams)
        self.assertEqual(len(self.service.fired()), 3)
        self.assertEqual(self.epoch(), 4)

    def test_deaths_one_after_another_under_one_request(self):
        self.start("tp=2")
        self.service.arm(*(f"rank={epoch % 2},epoch={epoch},at=decode,step=30,do=sigkill"
                           for epoch in range(1, 5)))
        streams = [self.stream(self.endless(f"long-{i}", n=1, seed=i, max_tokens=400))
                   for i in range(2)]
        self.assert_exact(streams)
        self.assertEqual(len(self.service.fired()), 4)

    def test_a_rank_that_stops_for_less_than_the_timeout_is_not_replaced(self):
        self.start("tp=2")
        stream = self.begin(self.endless("stopped"))
        rank = self.pids()[1]
        os.kill(rank, signal.SIGSTOP)
        while pathlib.Path(f"/proc/{rank}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            pass
        # The coordinator and the other rank go on meanwhile.
        self.client.status()
        self.assertEqual(self.client.health(), "SERVING")
        os.kill(rank, signal.SIGCONT)
        self.assert_exact([stream])
        self.assertEqual(self.epoch(), 1)
        self.assertEqual(self.pids()[1], rank)

    def test_a_hang_with_live_heartbeats_is_found_and_named(self):
        self.start("tp=2", hang=3)
        mark = self.service.mark()
        self.service.arm("rank=1,epoch=1,at=collective,step=9,nth=3,do=hang")
        streams = [self.stream(r) for r in mix.requests("hang", 4, "hang")]
        self.assert_exact(streams)
        (fired,) = self.service.fired()
        match, seconds = self.service.wait_for(r".*hangs.*", mark)
        line = match.group(0)
        print(f"  found in {seconds - fired.seconds:.2f} s: {line}")
        self.assertLess(seconds - fired.seconds, 3 + 1 + faulty.SLACK)
        for fragment in (f"pid {fired.pid}", r"step \d+", r"collective \d+", "rank 1", "host"):
            self.assertRegex(line, fragment)
        # The one that is behind is named first.
        self.assertLess(line.index("rank 1 "), line.index("rank 0 "))

    def test_the_other_replica_shows_no_pause(self):
        self.start("dp=2")
        # Each replica always has something to do: a stream that ends is followed by another.
        streams = [self.begin(self.endless("other", n=1, max_tokens=1900))]
        other = 0 if self.client.status().replicas[0].engine.running_requests else 1
        streams.append(self.begin(self.endless("victim", "One day Tom", n=1, max_tokens=1900)))
        status = self.client.status()
        self.assertEqual([r.engine.running_requests for r in status.replicas], [1, 1])
        pid = next(rank.pid for rank in status.ranks if rank.replica != other)
        mark = self.service.mark()
        os.kill(pid, signal.SIGKILL)
        # The other's tokens, counted by the server at every look until the first one is back.
        counts = []
        status = self.client.status()
        while status.replicas[1 - other].epoch == 1 or \
                status.replicas[1 - other].state != self.client.pb.SERVER_STATE_SERVING:
            counts.append(status.replicas[other].engine.generated_tokens)
            if status.replicas[other].engine.running_requests == 0:
                streams.append(self.begin(self.endless(f"other-{len(streams)}", n=1)))
            status = self.client.status()
        self.assert_exact(streams)
        self.assertEqual(status.replicas[other].epoch, 1)
        # In every tenth of the looks there were new ones.
        marks = counts[::max(1, len(counts) // 10)]
        steps = [b - a for a, b in zip(marks, marks[1:])]
        _, died = self.service.wait_for("the worker group died", mark)
        _, up = self.service.wait_for("epoch 2 ", mark)
        times = [e.seconds for e in streams[0].history.of("delta")]
        gaps = {name: max((b - a for a, b in zip(times, times[1:]) if begin < b < end), default=0)
                for name, begin, end in (("before", 0, died), ("then", died, up))}
        print(f"  while one replica recovered ({up - died:.2f} s, {len(counts)} looks) the other "
              f"made {counts[-1] - counts[0]} tokens, by tenths {steps}; its client's longest gap "
              f"{gaps['then']:.3f} s, before {gaps['before']:.3f} s")
        self.assertGreaterEqual(len(steps), 5)
        self.assertGreater(min(steps), 0)

    def test_every_replica_killed_at_once(self):
        self.start("dp=2")
        streams = [self.begin(self.endless(f"both-{i}", n=2, max_tokens=700)) for i in range(2)]
        for rank in self.client.status().ranks:
            os.kill(rank.pid, signal.SIGKILL)
        more = [self.stream(r) for r in mix.requests("both", 4, "meanwhile")]
        self.assert_exact(streams + more)


class Quarantine(Scenario):
    def poison(self):
        pb = harness.stubs().pb
        request = pb.GenerateRequest(request_id="poison", sampling=pb.SamplingParams(max_tokens=8))
        request.token_ids.ids.extend([5, 6, POISON, 7])
        return mix.Request("poison", request)

    def test_a_poison_request_ends_and_its_neighbours_are_exact(self):
        self.start("tp=2", faults=f"rank=*,epoch=*,at=poison,token={POISON},do=abort\n")
        kinds = [kind for kind in mix.KINDS if kind not in ("long", "biased")]
        neighbours = [self.stream(r) for r in mix.requests("neighbours", 7, "near", kinds, 80)]
        poison = self.stream(self.poison())
        later = [self.stream(r) for r in mix.requests("later", 4, "later", kinds)]
        history = poison.join()
        code, details = history.of("status")[0].value
        print(f"  {code} {details}")
        self.assertEqual(code, "INTERNAL")
        self.assertIn("not tried again", details)
        self.assertRegex(details, r"rank \d")
        self.assertEqual(history.generated(), 0)
        self.assert_exact(neighbours + later)
        # It takes two deaths to know, and no third.
        self.assertEqual(len({fired.epoch for fired in self.service.fired()}), 2 if len(
            self.service.fired()) < 3 else 3)
        self.assertEqual(self.client.health(), "SERVING")


class ByHand(Scenario):
    def start_by_hand(self):
        self.start("tp=2", "--workers", "external", wait=False)
        line = self.service.wait_for_line(r"^\s+(PHALANX\S+=\S+) (\S*mpirun .*)$")
        variable, value = line.group(1).split("=", 1)
        self.mpirun = harness.Process(
            line.group(2).split(" "),
            env={**os.environ, variable: value,
                 "PHALANX_FAULT": f"@{self.service.fault_file}"})
        self.addCleanup(self.mpirun.stop)
        self.service.wait_for_line('serving "')
        self.client = self.connect(self.service)

    def assert_ended(self, stream, *fragments):
        history = stream.join()
        code, details = history.of("status")[0].value
        print(f"  {code} {details}")
        self.assertEqual(code, "UNAVAILABLE")
        for fragment in fragments:
            self.assertRegex(details, fragment)

    def test_their_death_ends_requests_and_says_that_they_cannot_be_started_again(self):
        self.start_by_hand()
        stream = self.begin(self.endless("by-hand"))
        pids = self.pids()
        os.kill(pids[1], signal.SIGKILL)
        self.assert_ended(stream, "rank 1", f"pid {pids[1]}", "by hand|external", r"\d+ tokens")
        self.assertEqual(self.service.wait(), 1, self.service.lines)
        self.assert_nothing_left(pids.values())

    def test_late_words_of_a_stopped_rank_change_nothing(self):
        self.start_by_hand()
        stream = self.begin(self.endless("late"))
        pids = self.pids()
        os.kill(pids[0], signal.SIGSTOP)
        self.assert_ended(stream, "rank 0", f"pid {pids[0]}")
        os.kill(pids[0], signal.SIGCONT)
        self.assertEqual(self.service.wait(), 1, self.service.lines)
        self.assert_nothing_left(pids.values())


class Coordinator(Scenario):
    def test_its_death_leaves_nothing_busy_idle_or_with_a_stopped_rank(self):
        for state in ("busy", "idle", "stopped", "loading"):
            with self.subTest(state=state):
                if state == "loading":
                    self.start("tp=2", wait=False,
                               faults="rank=1,epoch=1,at=loading,do=hang\n")
                    deadline = time.monotonic() + harness.DEADLINE
                    while not self.service.fired() and time.monotonic() < deadline:
                        pass
                else:
                    self.start("tp=2")
                if state == "busy":
                    self.begin(self.endless("busy"))
                if state == "stopped":
                    os.kill(self.pids()[1], signal.SIGSTOP)
                pids = list(self.service.processes())
                self.assertGreaterEqual(len(pids), 3, self.service.processes())
                begin = time.monotonic()
                self.service.signal(signal.SIGKILL)
                self.assert_nothing_left(pids)
                print(f"  {state}: all {len(pids)} processes gone after "
                      f"{time.monotonic() - begin:.2f} s")

    def test_sigterm_lets_running_requests_finish(self):
        self.start("tp=2")
        streams = [self.begin(self.endless(f"drain-{i}", n=1, seed=i, max_tokens=400))
                   for i in range(3)]
        pids = list(self.service.processes())
        self.service.signal(signal.SIGTERM)
        self.assert_exact(streams)
        self.assertEqual(self.service.wait(), 0, self.service.lines)
        self.assert_nothing_left(pids)

    def test_a_death_while_draining_is_recovered(self):
        self.start("tp=2")
        self.service.arm("rank=1,epoch=1,at=decode,step=200,do=sigkill")
        streams = [self.begin(self.endless(f"drain-{i}", n=1, seed=i, max_tokens=500))
                   for i in range(2)]
        self.service.signal(signal.SIGTERM)
        self.assert_exact(streams)
        self.assertEqual(len(self.service.fired()), 1)
        self.assertEqual(self.service.wait(), 0, self.service.lines)
        self.assertEqual(self.service.processes(), {})

    def test_past_the_grace_requests_end_with_how_far_they_got(self):
        self.start("tp=2", "--grace", "1")
        stream = self.begin(self.endless("grace", n=16))
        self.service.signal(signal.SIGTERM)
        history = stream.join()
        code, details = history.of("status")[0].value
        print(f"  {code} {details}")
        self.assertEqual(code, "UNAVAILABLE")
        said = re.search(r"(\d+) tokens", details)
        self.assertIsNotNone(said, details)
        self.assertEqual(int(said.group(1)), history.generated())
        # "Stopped before the end": not a clean drain.
        self.assertEqual(self.service.wait(), 75, self.service.lines)
        self.assertEqual(self.service.processes(), {})


class Binary(Scenario):
    def test_the_shipped_binary_has_no_points_to_fail_at(self):
        service = self.start("tp=2", binary=harness.binary())
        service.arm("rank=*,epoch=*,at=prefill,do=sigkill")
        self.assert_exact([self.stream(r) for r in mix.requests("shipped", 3, "shipped")])
        self.assertEqual(service.fired(), [])
        strings = subprocess.run(["grep", "-c", "PHALANX_FAULT", harness.binary()],
                                 capture_output=True, check=False)
        self.assertEqual(strings.stdout.strip(), b"0")


if __name__ == "__main__":
    harness.main()
