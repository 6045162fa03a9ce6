#!/usr/bin/env python3
"""Workers started by hand with mpirun, joined to a serve that starts none, and what becomes of each
part when another one dies. The client is written in Python from the .proto alone.

    by_hand_test.py [--phalanx PATH] [unittest's arguments]
"""

import os
import threading
import unittest

import grpc

import harness


class ByHand(unittest.TestCase):
    def start(self):
        """serve, then mpirun exactly as serve's log says."""
        self.serve = harness.Server("--workers", "external", "--layout", "tp=2", "--threads", "1",
                                    wait=False)
        self.addCleanup(self.serve.stop)
        command, environment = self.serve.command_for_ranks()
        self.assertEqual(command[1:3], ["-np", "2"])
        self.mpirun = harness.Process(command, env=environment)
        self.addCleanup(self.mpirun.stop)
        self.serve.wait_for_line('serving "')
        self.ranks = self.serve.rank_pids()
        self.assertEqual(len(self.ranks), 2, self.serve.lines)
        self.client = harness.Client(self.serve.endpoint)
        self.addCleanup(self.client.channel.close)

    def assert_gone(self, timeout):
        for pid in self.ranks:
            self.assertTrue(harness.wait_for_exit_of(pid, timeout), f"rank with pid {pid} lives on")
        self.mpirun.wait(timeout)

    def endless(self):
        """A stream that has begun and has over a thousand tokens to go."""
        return self.client.begin(self.client.request("Once", ignore_eos=True, max_tokens=2000, n=4,
                                                     temperature=1.0))

    def test_answers_a_client_and_sigterm_ends_everything_with_code_zero(self):
        self.start()
        self.client.check_standard_services()
        status = self.client.status()
        self.assertEqual([r.pid for r in status.ranks], self.ranks)
        answer = self.client.generate(self.client.request(temperature=0.0, max_tokens=24,
                                                          ignore_eos=True))
        self.assertEqual(len(answer["ids"][0]), 24)
        self.assertGreater(answer["deltas"], 8, "the answer was not streamed")
        self.assertEqual(answer["started"].layout, "tp=2")
        print(f'  {answer["text"][0]!r} in {answer["deltas"]} deltas')

        self.serve.signal(harness.TERM)
        self.assertEqual(self.serve.wait(), 0, self.serve.lines)
        self.assert_gone(10)
        self.assertEqual(self.mpirun.popen.returncode, 0, self.mpirun.lines)
        self.assertFalse(self.serve.endpoint_file.exists())

    def test_sigterm_lets_a_running_request_finish(self):
        self.start()
        result = {}

        def ask():
            result["answer"] = self.client.generate(
                self.client.request(temperature=0.0, max_tokens=300, ignore_eos=True))

        asking = threading.Thread(target=ask)
        asking.start()
        self.client.wait_for_status(lambda s: s.engine.running_requests == 1)
        self.serve.signal(harness.TERM)
        asking.join(harness.DEADLINE)
        self.assertEqual(len(result["answer"]["ids"][0]), 300)
        self.assertEqual(self.serve.wait(), 0, self.serve.lines)
        self.assert_gone(10)

    def test_ranks_end_when_the_coordinator_is_killed(self):
        self.start()
        self.endless()
        self.serve.signal(harness.KILL)
        self.assert_gone(10)

    def test_idle_ranks_end_when_the_coordinator_is_killed(self):
        self.start()
        self.serve.signal(harness.KILL)
        self.assert_gone(10)

    def test_a_killed_rank_ends_requests_unavailable_and_serve_with_code_one(self):
        for victim in (0, 1):
            with self.subTest(rank=victim):
                self.start()
                stream = self.endless()
                os.kill(self.ranks[victim], harness.KILL)
                with self.assertRaises(grpc.RpcError) as caught:
                    for _ in stream:
                        pass
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
                print(f"  {caught.exception.details()}")
                self.assertIn(f"rank {victim}", caught.exception.details())
                self.assertEqual(self.serve.wait(), 1, self.serve.lines)
                last = self.serve.lines[-1]
                print(f"  {last}")
                self.assertIn(f"rank {victim}", last)
                self.assertIn("started by hand can't be started again", last)
                self.assert_gone(10)

    def test_without_restarts_a_killed_rank_ends_serve_and_is_named(self):
        serve = harness.Server("--layout", "tp=3", "--threads", "1", "--max-restarts", "0")
        self.addCleanup(serve.stop)
        pids = serve.rank_pids()
        self.assertEqual(len(pids), 3)
        os.kill(pids[2], harness.KILL)
        self.assertEqual(serve.wait(), 1, serve.lines)
        last = [line for line in serve.lines if line.startswith("phalanx serve: ")]
        print("  " + "\n  ".join(last))
        self.assertEqual(len(last), 1, serve.lines)
        self.assertIn("rank 2", last[0])
        for pid in pids:
            self.assertTrue(harness.wait_for_exit_of(pid, 10))


if __name__ == "__main__":
    harness.main()
