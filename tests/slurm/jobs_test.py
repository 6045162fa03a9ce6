#!/usr/bin/env python3
"""Phalanx at home on Slurm: who starts the ranks, the sample scripts, and what each signal does.

    jobs_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import unittest

import cluster
import jobs
from jobs import harness


class Starting(jobs.SlurmTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = jobs.answer_of_one_rank(16)

    def run_flags(self, *more):
        return " ".join(["$PHALANX", "run", "--model", "$MODEL", "--prompt", f"'{jobs.PROMPT}'",
                         "--json", "--logprobs 2 --max-tokens 16 --temperature 0 --ignore-eos",
                         "--threads 1 --kv-memory 16MiB", *more])

    def test_srun_and_mpirun_give_the_tokens_of_one_rank(self):
        script = self.script("run", "set -e\n" + "\n".join(
            self.run_flags("--layout", layout, *more) for layout, *more in (
                ("tp=4",), ("tp=4", "--workers mpirun"), ("dp=2,tp=2",),
                ("dp=2,pp=2", "--workers mpirun"), ("tp=3", "--hosts n1:2,n2:1"),
                ("tp=2", "--binding core"))) + "\n")
        job = self.submit(script, options=("--nodes=2", "--ntasks-per-node=2"))
        self.assert_ends(job, "COMPLETED", "0:0")
        answers = [line for line in self.output(job).splitlines() if line.startswith("{")]
        self.assertEqual([jobs.bits(line) for line in answers], [self.expected] * 6)
        self.assertEqual([json.loads(line)["layout"] for line in answers],
                         ["tp=4", "tp=4", "dp=2,tp=2", "dp=2,pp=2", "tp=3", "tp=2"])
        text = self.output(job)
        for where in ("replica 0, rank 1 of 2: host n1", "replica 1, rank 0 of 2: host n2",
                      "rank 2 of 3: host n2"):
            self.assertIn(where, text)

    def test_a_layout_larger_than_the_allocation_is_refused(self):
        job = self.submit(self.script("large", self.run_flags("--layout", "tp=3")))
        self.assert_ends(job, "FAILED", "2:0")
        self.assertIn("the hosts have 2 slots", self.output(job))

    def test_a_plan_is_made_for_the_nodes_of_the_allocation(self):
        job = self.submit(self.script("plan", """set -e
$PHALANX plan --model $MODEL --json
$PHALANX plan --model $MODEL --json --hosts other:1
$PHALANX plan --quick --calibrate-ranks 2 --calibrate measured.yaml
"""), options=("--nodes=2", "--ntasks-per-node=2"))
        self.assert_ends(job, "COMPLETED", "0:0")
        plans = [json.loads(line) for line in self.output(job).splitlines()
                 if line.startswith("{")]
        self.assertEqual([plan["cluster"]["nodes"] for plan in plans], [2, 1])
        self.assertEqual(plans[0]["cluster"]["devices"], 4)
        self.assertIn("across_nodes: true", (self.work / "measured.yaml").read_text())

    def test_srun_outside_of_an_allocation_is_refused(self):
        result = harness.run("run", "--model", str(harness.DEMO_MODEL), "--prompt", "a",
                             "--workers", "srun")
        self.assertEqual(result.returncode, 2)
        print("  " + result.stderr.decode().strip())

    def test_workers_by_hand(self):
        port = cluster.free_port()
        worker = (f"$PHALANX worker --coordinator n1:{port} --model $MODEL --layout tp=2 "
                  "--threads 1 --kv-memory 16MiB")
        job = self.submit(self.script("hand", f"""
export PHALANX_CONTROL_TOKEN=a-secret-of-this-job
srun --mpi=none -n2 {worker}
echo "without PMIx: $?"
$PHALANX serve --model $MODEL --layout tp=2 --workers external --listen $(hostname):0 \\
  --control-listen $(hostname):{port} --endpoint-file endpoint.by-hand &
srun --mpi=pmix --overlap -n2 {worker} &
ranks=$!
until [ -s endpoint.by-hand ] &&
  $PHALANX status --endpoint $(cat endpoint.by-hand) 2>/dev/null | grep -q ': serving,'
do sleep 0.2; done
$PHALANX generate --endpoint $(cat endpoint.by-hand) --prompt '{jobs.PROMPT}' --json \\
  --logprobs 2 --max-tokens 16 --temperature 0 --ignore-eos
kill %1; wait %1; echo "serve: $?"
wait $ranks; echo "ranks: $?"
"""))
        self.assert_ends(job, "COMPLETED", "0:0")
        text = self.output(job)
        self.assertIn("start the workers with srun --mpi=pmix or mpirun", text)
        for line in ("without PMIx: 2", "serve: 0", "ranks: 0"):
            self.assertIn(line, text)
        answer = next(line for line in text.splitlines() if line.startswith("{"))
        self.assertEqual(jobs.bits(answer), self.expected)

    def test_service_and_client_in_one_job(self):
        client = self.script("client", f"""
[ -n "$1" ] && exit $1
$PHALANX generate --endpoint $PHALANX_ENDPOINT --prompt '{jobs.PROMPT}' --json --logprobs 2 \\
  --max-tokens 16 --temperature 0 --ignore-eos
""")
        client.chmod(0o755)
        sample = jobs.SAMPLES / "service-and-client.sbatch"
        job = self.submit(sample, str(client), "")
        self.assert_ends(job, "COMPLETED", "0:0")
        answer = next(line for line in self.output(job).splitlines() if line.startswith("{"))
        self.assertEqual(jobs.bits(answer), self.expected)
        self.assert_ends(self.submit(sample, str(client), "3"), "FAILED", "3:0")

    def test_nodes_of_two_kinds(self):
        job = self.submit(jobs.SAMPLES / "two-kinds-of-nodes.sbatch", "--kv-memory", "16MiB",
                          options=(), LAYOUT="tp=3", THREADS="1")
        client = self.generate(self.endpoint(job), 16)
        self.assertEqual(self.finish(client), self.expected)
        text = self.output(job)
        for line in ("rank 0 of 3: host n1", "rank 1 of 3: host n1", "rank 2 of 3: host n2"):
            self.assertIn(line, text)
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)
        self.assert_ends(job, "COMPLETED", "0:0")


class Signals(jobs.SlurmTestCase):
    TOKENS = 400

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = jobs.answer_of_one_rank(cls.TOKENS)

    def service(self, **options):
        job = self.submit(jobs.SAMPLES / "service.sbatch", "--kv-memory", "16MiB", **options)
        return job, self.endpoint(job)

    def begin(self, endpoint):
        """A request that runs."""
        client = self.generate(endpoint, self.TOKENS)
        with harness.Client(endpoint) as watcher:
            watcher.wait_for_status(lambda s: s.engine.running_requests == 1)
        return client

    def test_usr1_to_the_batch_script_drains(self):
        job, endpoint = self.service()
        client = self.begin(endpoint)
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)
        self.assertEqual(self.finish(client), self.expected)
        self.assert_ends(job, "COMPLETED", "0:0")

    def test_signals_to_the_ranks_alone_change_nothing(self):
        job, endpoint = self.service()
        client = self.begin(endpoint)
        # Without --batch, scancel signals the steps: the ranks.
        self.slurm.run("scancel", "--signal=USR1", job)
        self.slurm.run("scancel", "--signal=TERM", job)
        self.assertEqual(self.finish(client), self.expected)
        self.assertNotIn("starting epoch 2", self.output(job))
        self.slurm.run("scancel", "--batch", "--signal=TERM", job)
        self.assert_ends(job, "COMPLETED", "0:0")

    def test_scancel_leaves_nothing(self):
        job, endpoint = self.service()
        self.begin(endpoint)
        self.slurm.run("scancel", job)
        info = self.slurm.wait_for_state(job, *jobs.END_STATES)
        self.assertEqual(info["JobState"], "CANCELLED")
        self.assert_ends(job, "CANCELLED", info["ExitCode"])

    def test_a_requeued_job_goes_on_after_its_last_answer(self):
        texts = [f"Number {i}: the cat" for i in range(6)]
        texts[1] = "the cat " * 5000  # more than the model takes
        prompts = self.work / "prompts.txt"
        prompts.write_text("\n".join(texts))  # the last line has no end
        answers = self.work / "answers.jsonl"
        answers.write_text('{"token_ids":[1')  # a job before had no room for more
        job = self.submit(jobs.SAMPLES / "requeue.sbatch", str(prompts), str(answers),
                          MAX_TOKENS="120")
        self.slurm.until(lambda: answers.exists() and answers.read_text().count("\n") >= 2,
                         lambda: f"two answers: {self.output(job)}")
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)
        self.slurm.until(lambda: self.slurm.job(job)["Restarts"] == "1",
                         lambda: f"requeue: {self.slurm.job(job)} {self.output(job)}")
        had = answers.read_text().count("\n")
        self.assertLess(had, 6)
        # Slurm lets a requeued job wait for two minutes; a node refuses one that it has just
        # killed.
        self.slurm.wait_for_state(job, "PENDING")
        self.slurm.run("scontrol", "update", f"jobid={job}", "starttime=now+3seconds")
        self.assert_ends(job, "COMPLETED", "0:0")
        lines = answers.read_text().splitlines()
        self.assertEqual(len(lines), 6)
        print(f"  {had} answers before, {6 - had} after the requeue")
        for i, line in enumerate(lines):
            if i == 1:
                self.assertIn("context", json.loads(line)["error"])
                continue
            one = harness.run("run", "--model", str(harness.DEMO_MODEL), "--prompt", texts[i],
                              "--json", "--max-tokens", "120", "--temperature", "0",
                              "--kv-memory", "16MiB", "--threads", "1")
            self.assertEqual(json.loads(line)["token_ids"],
                             json.loads(one.stdout)["token_ids"])

    def test_a_job_whose_command_is_wrong_fails_and_is_not_queued_again(self):
        prompts = self.work / "prompts-of-none.txt"
        prompts.write_text("a\nb\n")
        answers = self.work / "answers-of-none.jsonl"
        for code, wrong in (("1:0", {"MAX_TOKENS": "many"}),
                            ("2:0", {"MODEL": str(self.work / "no-model")})):
            with self.subTest(wrong=wrong):
                job = self.submit(jobs.SAMPLES / "requeue.sbatch", str(prompts), str(answers),
                                  **wrong)
                self.assert_ends(job, "FAILED", code)
                self.assertEqual(self.slurm.job(job)["Restarts"], "0")
                self.assertEqual(answers.read_text(), "")


if __name__ == "__main__":
    jobs.skip_where_unavailable()
    harness.main()
