#!/usr/bin/env python3
"""What fails inside a Slurm job, and what becomes of the streams, the job and the nodes.

    failures_test.py [--phalanx PATH] [unittest's arguments]
"""

import os
import signal
import time
import unittest

import jobs
from jobs import harness

# serve's own bounds, shorter than its defaults.
BOUNDS = ("--heartbeat-timeout", "4", "--hang-timeout", "6", "--host-wait", "2")


class Failures(jobs.SlurmTestCase):
    TOKENS = 400

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = jobs.answer_of_one_rank(cls.TOKENS)

    def service(self, *arguments, options=()):
        job = self.submit(jobs.SAMPLES / "service.sbatch", "--kv-memory", "16MiB", *BOUNDS,
                          *arguments,
                          options=("--nodes=2", "--ntasks-per-node=1", *options))
        return job, self.endpoint(job)

    def begin(self, endpoint):
        """A request that runs."""
        client = self.generate(endpoint, self.TOKENS)
        with harness.Client(endpoint) as watcher:
            watcher.wait_for_status(lambda s: s.engine.generated_tokens > 5)
        return client

    def one(self, node, start):
        """The node's one process whose command line starts like that."""
        found = [p for p, line in self.slurm.pids(node).items() if line.startswith(start)]
        self.assertTrue(found, self.slurm.pids(node))
        return found[0]

    def drain(self, job):
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)
        self.assert_ends(job, "COMPLETED", "0:0")

    def test_a_dead_or_stopped_rank_or_launcher_is_a_pause(self):
        rank = f"{harness.binary()} worker"
        for workers in ("srun", "mpirun"):
            job, endpoint = self.service("--workers", workers)
            for what, node, start, number in (
                    ("rank 0 killed", "n1", rank, signal.SIGKILL),
                    ("rank 1 killed", "n2", rank, signal.SIGKILL),
                    ("rank 1 stopped", "n2", rank, signal.SIGSTOP),
                    (f"{workers} killed", "n1", workers, signal.SIGKILL),
                    (f"{workers} stopped, rank 1 killed", "n1", workers, signal.SIGSTOP)):
                with self.subTest(workers=workers, what=what):
                    client = self.begin(endpoint)
                    began = time.monotonic()
                    os.kill(self.one(node, start), number)
                    if "stopped, rank" in what:
                        os.kill(self.one("n2", rank), signal.SIGKILL)
                    self.assertEqual(self.finish(client), self.expected)
                    print(f"  {workers}: {what}: exact {time.monotonic() - began:.1f} s after")
            for line in self.output(job).splitlines():
                if "is up" in line:
                    print("  " + line)
            self.drain(job)

    def test_nothing_outlives_a_killed_serve(self):
        for workers, stopped in (("srun", None), ("srun", "rank"), ("srun", "srun"),
                                 ("mpirun", None), ("mpirun", "orted")):
            with self.subTest(workers=workers, stopped=stopped):
                job, endpoint = self.service("--workers", workers)
                if stopped:
                    node, start = {"rank": ("n2", f"{harness.binary()} worker"),
                                   "srun": ("n1", "srun"),
                                   "orted": ("n2", "orted")}[stopped]
                    os.kill(self.one(node, start), signal.SIGSTOP)
                began = time.monotonic()
                os.kill(self.one("n1", f"{harness.binary()} serve"), signal.SIGKILL)
                self.slurm.until(
                    lambda: not any(self.slurm.ours(n, harness.binary()) for n in ("n1", "n2")),
                    lambda: f"end of {self.slurm.pids('n1')} {self.slurm.pids('n2')}", 10)
                print(f"  {workers}, {stopped} stopped: "
                      f"both nodes are empty {time.monotonic() - began:.1f} s after")
                self.assert_ends(job, "FAILED", "0:9")

    def test_a_failed_node_leaves_the_job_to_the_other(self):
        job, endpoint = self.service()
        client = self.begin(endpoint)
        began = time.monotonic()
        self.slurm.power_off("n2")
        self.assertEqual(self.finish(client), self.expected)
        print(f"  exact {time.monotonic() - began:.1f} s after the node's end")
        self.assertIn("n2 is away; going on with tp=1 on n1:1", self.output(job))
        self.slurm.wait_for_node("n2", "down")
        self.assertEqual(self.slurm.job(job)["JobState"], "RUNNING")
        self.drain(job)
        self.slurm.power_on("n2")
        self.slurm.wait_for_node("n2", "idle")

    def test_the_first_nodes_failure_ends_or_requeues_the_job(self):
        for requeue in (False, True):
            with self.subTest(requeue=requeue):
                job, _ = self.service(options=("--no-kill=off",
                                                     "--requeue" if requeue else "--no-requeue"))
                self.slurm.power_off("n1")
                self.slurm.until(lambda: not self.slurm.ours("n2", harness.binary()),
                                 lambda: f"end of {self.slurm.pids('n2')}", 10)
                self.slurm.wait_for_node("n1", "down")
                if requeue:
                    self.slurm.wait_for_state(job, "PENDING")
                else:
                    self.slurm.wait_for_state(job, "NODE_FAIL")
                    print(f"  NODE_FAIL {self.slurm.job(job)['ExitCode']}")
                self.slurm.power_on("n1")
                self.slurm.wait_for_node("n1", "idle")
                if not requeue:
                    continue
                # Slurm lets a requeued job wait for two minutes; a node refuses one that it has
                # just killed.
                (self.work / f"{job}.out").unlink()
                self.slurm.run("scontrol", "update", f"jobid={job}", "starttime=now+3seconds")
                client = self.generate(self.endpoint(job), self.TOKENS)
                self.assertEqual(self.finish(client), self.expected)
                self.drain(job)
                print(f"  requeued {self.slurm.job(job)['Restarts']} times, then COMPLETED")


if __name__ == "__main__":
    jobs.skip_where_unavailable()
    harness.main()
