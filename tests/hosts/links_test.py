#!/usr/bin/env python3
"""Two hosts, four streams running, and the network or one host fails: every stream ends as on one
rank that nothing happened to.

    links_test.py [--phalanx PATH] [unittest's arguments]
"""

import os
import signal
import threading
import time
import unittest

import service
from service import harness

COUNT, TOKENS = 4, 400
CUT_SECONDS = 30
# Two groups whose ranks never register, a minute each, are the longest way back.
JOIN_SECONDS = 300
# serve's own bounds, shorter than its defaults.
BOUNDS = ("--heartbeat-timeout", "4", "--hang-timeout", "8")


class Links(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = service.expected(COUNT, TOKENS)

    def setUp(self):
        self.hosts = service.make_hosts(["a", "b", "c"])
        self.hosts.start()
        self.addCleanup(self.hosts.stop)

    def run_with(self, fail, *arguments, on="a", layout="tp=2", restore=None, seconds=CUT_SECONDS):
        """`fail` after the first tokens, `restore` so many seconds later; the log's lines. The
        service runs on host `on`."""
        with service.Served(self.hosts, on, ["--layout", layout, "--hosts", "a:1,b:1", *BOUNDS,
                                              *arguments]) as served:
            streams = service.Streams(served.client, COUNT, TOKENS)
            streams.wait_for_tokens(2 * COUNT)
            began = time.monotonic()
            fail()
            if restore is not None:
                # How long the fault lasts, not a wait for something.
                threading.Event().wait(seconds)
                restore()
            self.assertEqual(streams.join(JOIN_SECONDS), self.expected)
            print(f"  all streams exact {time.monotonic() - began:.1f} s after the fault")
            os.kill(served.pid(), signal.SIGTERM)
            self.assertEqual(served.process.wait(), 0, served.process.lines)
            for line in served.process.lines:
                if " warning]" in line or "is up" in line:
                    print("  " + line)
            return served.process.lines

    def assert_clean(self, *names):
        for name in names:
            self.assertEqual(self.hosts.wait_until_empty(name, 10), {}, name)

    def test_a_link_cut_for_thirty_seconds_and_restored(self):
        self.run_with(lambda: self.hosts.cut_link("b"), "--host-wait", "90",
                      restore=lambda: self.hosts.restore_link("b"))
        self.assert_clean("a", "b")

    def test_a_host_gone_for_good_leaves_the_other_to_go_on(self):
        lines = self.run_with(lambda: self.hosts.power_off("b"), "--host-wait", "2")
        self.assertTrue(any("b is away; going on with" in line for line in lines), lines)
        self.assert_clean("a")

    def test_hosts_that_never_reach_each_other_again_go_on_apart(self):
        """Each is reached by the coordinator all the time."""
        def cut():
            self.hosts.cut_one_way("a", "b")
            self.hosts.cut_one_way("b", "a")
        lines = self.run_with(cut, on="c")
        self.assertTrue(any("may not reach each other" in line for line in lines), lines)
        self.assert_clean("a", "b", "c")

    def test_one_way_cuts(self):
        for sender, receiver in (("a", "b"), ("b", "a")):
            with self.subTest(sender=sender):
                self.run_with(lambda s=sender, r=receiver: self.hosts.cut_one_way(s, r),
                              "--host-wait", "90", layout="pp=2", seconds=10,
                              restore=lambda s=sender, r=receiver: self.hosts.restore_one_way(s, r))
                self.assert_clean("a", "b")


if __name__ == "__main__":
    service.skip_where_unavailable()
    harness.main()
