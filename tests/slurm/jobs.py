"""What the Slurm tests share: one cluster of two nodes, jobs of the sample scripts, and answers
that are compared with those of one rank."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import cluster  # noqa: E402
import harness  # noqa: E402

SAMPLES = harness.ROOT / "cluster-configs" / "slurm"
PROMPT = "Once upon a time"
END_STATES = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")


def skip_where_unavailable():
    reason = cluster.unavailable()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)


def answer_of_one_rank(tokens):
    result = harness.run("run", "--model", str(harness.DEMO_MODEL), "--prompt", PROMPT, "--json",
                         "--logprobs", "2", "--max-tokens", str(tokens), "--temperature", "0",
                         "--ignore-eos", "--kv-memory", "16MiB", "--threads", "1")
    assert result.returncode == 0, result.stderr
    return bits(result.stdout.decode())


def bits(line):
    """Ids and logprobs of a line of --json, as printed: equal text is equal bits."""
    return line[line.index('"token_ids":'):line.index(',"text":')], \
        line[line.index('"logprobs":'):line.index(',"seed":')]


class SlurmTestCase(unittest.TestCase):
    """`self.slurm`: nodes n1 ("big") and n2 ("small") of four CPUs each."""

    @classmethod
    def setUpClass(cls):
        cls.slurm = cluster.Cluster(
            {"n1": 4, "n2": 4}, features={"n1": "big", "n2": "small"},
            shared=[harness.ROOT, pathlib.Path(harness.binary()).parent])
        cls.slurm.start()
        cls.addClassCleanup(cls.slurm.stop)
        cls.work = cls.slurm.directory / "work"

    def run(self, result=None):
        failures = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > failures:
            for path in sorted(self.work.glob("*.out")):
                print(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}")
            print(self.slurm.logs())

    def script(self, name, text):
        path = self.work / name
        path.write_text("#!/bin/bash\n" + text)
        return path

    def submit(self, script, *arguments, options=("--nodes=2", "--ntasks-per-node=1"), **variables):
        """A job of two ranks, one on each node, unless told otherwise."""
        job = self.slurm.submit(
            *options, "--cpus-per-task=1", "--time=20", f"--chdir={self.work}", "--output=%j.out",
            str(script), *arguments, cwd=self.work,
            env={"MODEL": str(harness.DEMO_MODEL), "PHALANX": harness.binary(), "LAYOUT": "tp=2",
                 **variables})
        self.addCleanup(self.slurm.run, "scancel", job, check=False)
        return job

    def output(self, job):
        path = self.work / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_output(self, job, text, timeout=harness.DEADLINE):
        self.slurm.until(lambda: text in self.output(job),
                         lambda: f"{text!r} in the job's output:\n{self.output(job)}", timeout)

    def endpoint(self, job):
        """Of a job's service, as it is reached from here, once it serves."""
        self.wait_for_output(job, 'serving "')
        address = (self.work / f"phalanx-{job}.endpoint").read_text().strip()
        # Nodes have names of their own, but this machine's network.
        return "127.0.0.1:" + address.rsplit(":", 1)[1]

    def generate(self, endpoint, tokens):
        client = harness.Process(
            [harness.binary(), "generate", "--endpoint", endpoint, "--prompt", PROMPT, "--json",
             "--logprobs", "2", "--max-tokens", str(tokens), "--temperature", "0", "--ignore-eos"])
        self.addCleanup(client.stop)
        return client

    def finish(self, client):
        """The bits of a generate() that is to succeed."""
        self.assertEqual(client.wait(), 0, client.lines)
        return bits(client.out[0])

    def assert_ends(self, job, state, code, timeout=harness.DEADLINE):
        """The job reaches this end state and "EXIT:SIGNAL", and no node keeps a process of it."""
        info = self.slurm.wait_for_state(job, *END_STATES, timeout=timeout)
        self.assertEqual((info["JobState"], info["ExitCode"]), (state, code), self.output(job))
        for name, node in self.slurm.nodes.items():
            if node.holder is not None:
                self.slurm.until(lambda n=name: not self.slurm.ours(n, harness.binary()),
                                 lambda n=name: f"end of {self.slurm.pids(n)} on {n}", 10)
        print(f"  {self.id().split('.')[-1]}: {state} {code}")
