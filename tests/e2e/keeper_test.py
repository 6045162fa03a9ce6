#!/usr/bin/env python3
"""Packed weights outlive the rank that packed them, and nothing outlives the service: a rank that
takes a dead one's place maps the same memory; the process that keeps it ends with the coordinator,
whatever kind of end that is, and is not needed.

    keeper_test.py [--phalanx PATH] [unittest's arguments]
"""

import os
import signal
import unittest

import harness

# A keeper, like everything else, lives at most this long after the coordinator.
BOUND = 10


def keepers_of(coordinator):
    """Pids of the keepers for the coordinator at that address."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "keeper" in words and coordinator in words:
            found.append(int(pid))
    return found


def weights_mapped_by(pid):
    """Identity of the shared memory that a rank maps its weights from."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        return {line.split()[4] for line in file if "/memfd:phalanx-weights" in line}


class Keeper(unittest.TestCase):
    def start(self, *arguments):
        self.serve = harness.Server("--layout", "tp=2", "--threads", "1", "--workers", "mpirun",
                                    *arguments)
        self.addCleanup(self.serve.stop)
        self.client = harness.Client(self.serve.endpoint)
        self.addCleanup(self.client.channel.close)
        self.ranks = [rank.pid for rank in self.client.status().ranks]
        with open(f"/proc/{self.ranks[0]}/cmdline", "rb") as file:
            words = file.read().decode().split("\0")
        self.keepers = keepers_of(words[words.index("--coordinator") + 1])

    def answer(self):
        return self.client.generate(
            self.client.request(temperature=0.0, max_tokens=16, ignore_eos=True))["ids"][0]

    def kill_a_rank(self):
        """Pids of the ranks that took over, and what they answer."""
        os.kill(self.ranks[1], signal.SIGKILL)
        self.assertTrue(harness.wait_for_exit_of(self.ranks[1], BOUND))
        answer = self.answer()
        ranks = [rank.pid for rank in self.client.status().ranks]
        self.assertFalse(set(ranks) & set(self.ranks), "the group was not replaced")
        return ranks, answer

    def test_a_new_group_maps_what_the_dead_one_packed_and_answers_the_same(self):
        self.start()
        self.assertEqual(len(self.keepers), 1)
        packed = [weights_mapped_by(pid) for pid in self.ranks]
        self.assertEqual([len(mapped) for mapped in packed], [1, 1])
        self.assertNotEqual(packed[0], packed[1])
        answer = self.answer()
        for _ in range(2):
            ranks, again = self.kill_a_rank()
            self.assertEqual(again, answer)
            self.assertEqual([weights_mapped_by(pid) for pid in ranks], packed)
            self.ranks = ranks

    def test_without_its_keeper_a_service_packs_again(self):
        self.start()
        packed = [weights_mapped_by(pid) for pid in self.ranks]
        answer = self.answer()
        os.kill(self.keepers[0], signal.SIGKILL)
        self.assertTrue(harness.wait_for_exit_of(self.keepers[0], BOUND))
        ranks, again = self.kill_a_rank()
        self.assertEqual(again, answer)
        self.assertNotEqual([weights_mapped_by(pid) for pid in ranks], packed)

    def test_the_keeper_ends_with_a_coordinator_that_is_killed(self):
        self.start()
        self.serve.signal(signal.SIGKILL)
        self.serve.wait()
        for pid in self.keepers + self.ranks:
            self.assertTrue(harness.wait_for_exit_of(pid, BOUND), f"pid {pid} lives on")

    def test_the_keeper_ends_with_a_service_that_stops(self):
        self.start()
        self.serve.signal(harness.TERM)
        self.assertEqual(self.serve.wait(), 0, self.serve.lines)
        for pid in self.keepers + self.ranks:
            self.assertTrue(harness.wait_for_exit_of(pid, BOUND), f"pid {pid} lives on")

    def test_no_keeper_is_started_where_none_is_wanted(self):
        self.start("--no-keeper")
        self.assertEqual(self.keepers, [])
        self.assertEqual([weights_mapped_by(pid) for pid in self.ranks], [set(), set()])
        answer = self.answer()
        self.assertEqual(self.kill_a_rank()[1], answer)


if __name__ == "__main__":
    harness.main()
