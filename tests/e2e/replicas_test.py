#!/usr/bin/env python3
"""Data-parallel replicas as real processes: the same bits as one rank, whichever replica a request
runs on; what the status shows; and what becomes of the others when one dies.

    replicas_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import os
import re
import shlex
import unittest

import grpc

import harness

DEMO = str(harness.DEMO_MODEL)
PROMPTS = ["Once upon a time", "Number 2: the cat", "Lily had a red ball and", "The sun was warm"]


def field(line, name, following):
    """The text of one field, as printed: equal text is equal bits."""
    begin = line.index(f'"{name}":')
    return line[begin:line.index(f',"{following}":', begin)]


def rank_pids(lines):
    """{(replica, rank): pid} of the log's lines."""
    found = [re.search(r"replica (\d+), rank (\d+) of \d+: host \S+, pid (\d+)", line)
             for line in lines]
    return {(int(m.group(1)), int(m.group(2))): int(m.group(3)) for m in found if m}


class Replicas(unittest.TestCase):
    def run_prompts(self, *arguments):
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        result = harness.run("run", "--model", DEMO, "--json", "--logprobs", "3", "--ignore-eos",
                             "--max-tokens", "12", "--temperature", "0.8", "--seed", "3",
                             "--threads", "1", "--kv-memory", "16MiB", *prompts, *arguments)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        lines = result.stdout.decode().splitlines()
        self.assertEqual(len(lines), len(PROMPTS))
        return lines, result.stderr.decode()

    def test_every_layout_with_replicas_gives_the_bits_of_one_rank(self):
        expected, _ = self.run_prompts("--layout", "tp=1")
        for layout, workers in (("dp=2,tp=2", "mpirun"), ("dp=3", "mpirun"), ("dp=2", "threads")):
            with self.subTest(layout=layout, workers=workers):
                lines, log = self.run_prompts("--layout", layout, "--workers", workers)
                for one, line in zip(expected, lines):
                    self.assertEqual(field(line, "token_ids", "text"),
                                     field(one, "token_ids", "text"))
                    self.assertEqual(field(line, "logprobs", "seed"),
                                     field(one, "logprobs", "seed"))
                    self.assertEqual(json.loads(line)["layout"], layout)
                replicas, ranks = int(layout[3]), 2 if "tp=2" in layout else 1
                pids = rank_pids(log.splitlines())
                self.assertEqual(sorted(pids), [(d, r) for d in range(replicas)
                                                for r in range(ranks)], log)

    def endless(self, client, text):
        """A stream that has begun and has over a thousand tokens to go."""
        request = client.request(text, ignore_eos=True, max_tokens=2000, n=2, temperature=1.0)
        stream = client.stub.Generate(request, timeout=harness.DEADLINE)
        for response in stream:
            if response.WhichOneof("event") == "delta":
                return stream
        self.fail("the stream ended before its first token")

    def test_the_requests_of_a_lost_replica_go_on_with_the_others(self):
        server = harness.Server("--layout", "dp=2", "--threads", "1", "--max-restarts", "0")
        self.addCleanup(server.stop)
        pids = rank_pids(server.lines)
        client = harness.Client(server.endpoint)
        self.addCleanup(client.channel.close)
        streams = [self.endless(client, text) for text in PROMPTS[:2]]
        status = client.status()
        self.assertEqual(status.layout, "dp=2")
        self.assertEqual([r.engine.running_requests for r in status.replicas], [1, 1])
        self.assertEqual(status.engine.running_requests, 2)
        self.assertEqual({(r.replica, r.rank): r.pid for r in status.ranks}, pids)
        shown = harness.run("status", "--endpoint", server.endpoint).stdout.decode()
        print(shown)
        self.assertIn("replica 1: serving", shown)

        os.kill(pids[1, 0], harness.KILL)
        server.wait_for_line("replica 1: lost, 1 of 2 go on")
        server.wait_for_line(f"pid {pids[1, 0]}")
        self.assertEqual(client.health(), "SERVING")
        status = client.status()
        self.assertEqual([r.state for r in status.replicas],
                         [client.pb.SERVER_STATE_SERVING, client.pb.SERVER_STATE_FAILED])
        self.assertEqual([(r.replica, r.pid) for r in status.ranks], [(0, pids[0, 0])])
        self.assertEqual(status.engine.kv_blocks_total,
                         status.replicas[0].engine.kv_blocks_total)
        for stream in streams:  # both go on, on the replica that is left
            next(stream)
        self.assertEqual(client.status().replicas[0].engine.running_requests, 2)
        answer = client.generate(client.request(PROMPTS[1], max_tokens=5, ignore_eos=True))
        self.assertEqual(len(answer["ids"][0]), 5)

        os.kill(pids[0, 0], harness.KILL)
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in streams[0]:
                pass
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(server.wait(), 1, server.lines)
        self.assertIn(f"pid {pids[0, 0]}", server.lines[-1])
        for pid in pids.values():
            self.assertTrue(harness.wait_for_exit_of(pid, 10))

    def test_workers_by_hand_have_one_command_per_replica(self):
        server = harness.Server("--workers", "external", "--layout", "dp=2", "--threads", "1",
                                wait=False)
        self.addCleanup(server.stop)
        server.wait_for_line("--replica 1")
        found = [re.search(r"^\s+(PHALANX\S+=\S+) (\S*mpirun .*)$", line) for line in server.lines]
        found = [match for match in found if match]
        self.assertEqual(len(found), 2, server.lines)
        # The second replica's workers come first.
        for replica, match in reversed(list(enumerate(found))):
            self.assertIn(f"--replica {replica}", match.group(2))
            variable, value = match.group(1).split("=", 1)
            mpirun = harness.Process(shlex.split(match.group(2)),
                                     env={**os.environ, variable: value})
            self.addCleanup(mpirun.stop)
        server.wait_for_line('serving "')
        client = harness.Client(server.endpoint)
        self.addCleanup(client.channel.close)
        answer = client.generate(client.request(max_tokens=5, ignore_eos=True))
        self.assertEqual(len(answer["ids"][0]), 5)
        self.assertEqual(answer["started"].layout, "dp=2")
        server.signal(harness.TERM)
        self.assertEqual(server.wait(), 0, server.lines)

    def test_too_few_slots_are_refused_before_anything_starts(self):
        for flags in (["--hosts", "a:2,b:1"], ["--hosts", "a:x"]):
            result = harness.run("run", "--model", DEMO, "--prompt", "a", "--layout", "dp=2,tp=2",
                                 *flags)
            self.assertEqual(result.returncode, 2, result.stderr)
            print("  " + result.stderr.decode().strip())


if __name__ == "__main__":
    harness.main()
