#!/usr/bin/env python3
"""Ranks on two hosts by mpirun and a remote shell: the tokens of one rank; and nothing stays behind
on either, whatever is killed or stopped.

    launch_test.py [--phalanx PATH] [unittest's arguments]
"""

import os
import signal
import time
import unittest

import service
from service import harness

COUNT, TOKENS = 4, 40


class Launch(unittest.TestCase):
    def serve(self, *arguments):
        return service.Served(self.hosts, "a", arguments)

    def setUp(self):
        self.hosts = service.make_hosts(["a", "b"])
        self.hosts.start()
        self.addCleanup(self.hosts.stop)

    def assert_empty(self, name, seconds, began):
        left = self.hosts.wait_until_empty(name, seconds)
        self.assertEqual(left, {}, f"on {name} after {seconds} s")
        print(f"  {name} is empty {time.monotonic() - began:.2f} s after")

    def test_two_hosts_give_the_tokens_of_one_rank_and_leave_nothing(self):
        expected = service.expected(COUNT, TOKENS)
        for layout, hosts in (("tp=2", "a:1,b:1"), ("pp=2", "a:1,b:1"), ("dp=2", "a:1,b:1"),
                              ("tp=3", "a:1,b:2")):
            with (self.subTest(layout=layout),
                  self.serve("--layout", layout, "--hosts", hosts) as served):
                self.assertEqual({h for h, _ in served.ranks().values()}, {"a", "b"})
                self.assertEqual(service.Streams(served.client, COUNT, TOKENS).join(), expected)
                began = time.monotonic()
                os.kill(served.pid(), signal.SIGTERM)
                self.assertEqual(served.process.wait(), 0, served.process.lines)
                self.assert_empty("a", 10, began)
                self.assert_empty("b", 10, began)

    def test_nothing_outlives_a_killed_coordinator(self):
        for stopped in (None, "rank", "orted", "mpirun"):
            with (self.subTest(stopped=stopped),
                  self.serve("--layout", "tp=2", "--hosts", "a:1,b:1") as served):
                self.stop_one(stopped)
                began = time.monotonic()
                os.kill(served.pid(), signal.SIGKILL)
                self.assert_empty("a", 10, began)
                self.assert_empty("b", 10, began)

    def stop_one(self, what):
        if what is None:
            return
        host = "a" if what == "mpirun" else "b"
        start = {"rank": f"{harness.binary()} worker", "orted": "orted", "mpirun": "mpirun"}[what]
        found = [p for p, line in self.hosts.pids(host).items() if line.startswith(start)]
        self.assertEqual(len(found), 1, self.hosts.pids(host))
        os.kill(found[0], signal.SIGSTOP)

    def test_nothing_outlives_a_coordinator_whose_host_is_gone_or_out_of_reach(self):
        for how in ("power", "cable"):
            with (self.subTest(how=how),
                  self.serve("--layout", "tp=2", "--hosts", "a:1,b:1") as served):
                began = time.monotonic()
                if how == "power":
                    self.hosts.power_off("a")
                else:
                    self.hosts.cut_link("b")
                    os.kill(served.pid(), signal.SIGKILL)
                    self.assert_empty("a", 10, began)
                self.assert_empty("b", 10.5, began)
                if how == "power":
                    self.hosts.power_on("a")
                else:
                    self.hosts.restore_link("b")

    def test_a_host_that_is_not_there_is_named(self):
        self.hosts.power_off("b")
        result = self.hosts.exec("a", [
            harness.binary(), "run", "--model", str(harness.DEMO_MODEL), "--prompt", "a",
            "--layout", "tp=2", "--hosts", "a:1,b:1", "--max-restarts", "0", "--start-timeout",
            "60", "--mpirun-arg=--mca", "--mpirun-arg=plm_rsh_agent",
            f"--mpirun-arg={self.hosts.agent}"])
        print("  " + result.stderr.strip().splitlines()[-1])
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("agent: b:", result.stderr)
        self.assertEqual(self.hosts.wait_until_empty("a", 10), {})


if __name__ == "__main__":
    service.skip_where_unavailable()
    harness.main()
