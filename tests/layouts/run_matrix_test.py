"""The promise, end to end: `phalanx run --json --logprobs 5` under mpirun prints the same bytes of
`token_ids` and `logprobs` for every layout, thread count, neighbours, chunking, KV memory, sample
count and kernel path. Usage: run_matrix_test.py PATH_OF_PHALANX"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

PHALANX = None
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = os.path.join(ROOT, "launcher", "demo-model")
# Long enough for three KV blocks and for several prefill chunks.
PROMPT = (
    "Once upon a time there was a little girl named Lily. She had a red ball and a small dog. "
    "One day Lily and the dog went to the park to play. The sun was warm and the grass was green. "
    "Lily threw the ball and the dog ran after it. Then the ball fell into the pond and"
)
NEW_TOKENS = 40
MODES = {"greedy": ["--temperature", "0"], "sampled": ["--temperature", "0.9", "--seed", "7"]}


def field(line, name, following):
    """The text of one field, as printed: equal text is equal bits."""
    begin = line.index(f'"{name}":')
    return line[begin : line.index(f',"{following}":', begin)]


def run(arguments):
    """Lines of `phalanx run`, each as (token_ids text, logprobs text), and how often the last
    request was preempted."""
    command = [PHALANX, "run", "--model", MODEL, "--json", "--logprobs", "5", "--ignore-eos"]
    command += ["--max-tokens", str(NEW_TOKENS)] + arguments
    if "--kv-blocks" not in arguments:
        command += ["--kv-memory", "16MiB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    lines = done.stdout.splitlines()
    preemptions = [json.loads(line)["timings"]["preemptions"] for line in lines][-1]
    answers = [(field(l, "token_ids", "text"), field(l, "logprobs", "seed")) for l in lines]
    return answers, preemptions


class RunMatrix(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.reference = {
            (mode, n): run(["--prompt", PROMPT, "--threads", "1", "--n", str(n)] + flags)[0]
            for mode, flags in MODES.items()
            for n in (1, 4)
        }
        # The one that is compared comes last: of two that outgrow the KV memory, it must go.
        others = [
            {"prompt": PROMPT[i + 1 :], "max_tokens": NEW_TOKENS, "seed": i} if i % 2 else
            {"prompt": f"Number {i}: the cat", "max_tokens": 3 + i, "seed": i}
            for i in range(15)
        ]
        cls.crowds = {
            "among-15": others,
            # Six that need three KV blocks at first and four at the end, two by two.
            "among-5-long": [other for other in others if len(other["prompt"]) > 200][:5],
        }
        cls.directory = tempfile.TemporaryDirectory()
        for name, prompts in cls.crowds.items():
            with open(os.path.join(cls.directory.name, name), "w", encoding="utf-8") as file:
                for prompt in prompts + [{"prompt": PROMPT}]:
                    file.write(json.dumps(prompt) + "\n")

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def check(self, mode, n=1, crowd=None, **flags):
        arguments = ["--prompt", PROMPT]
        if crowd:
            arguments = ["--prompts-file", os.path.join(self.directory.name, crowd)]
        for name, value in flags.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        arguments += ["--n", str(n)] + MODES[mode]
        cell = f"{mode} n={n} {crowd or 'alone'} {flags}"
        with self.subTest(cell):
            answers, preemptions = run(arguments)
            if "kv_blocks" in flags:
                self.assertGreater(preemptions, 0, f"{cell}: the KV memory was large enough")
            self.assertEqual(len(answers), n * (1 + len(self.crowds.get(crowd, []))))
            for sample, (expected, found) in enumerate(zip(self.reference[mode, n], answers[-n:])):
                for what, a, b in zip(("token_ids", "logprobs"), expected, found):
                    if a != b:
                        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), -1)
                        self.fail(
                            f"{cell}: {what} of sample {sample} differ from character {at}: "
                            f"...{a[max(at - 40, 0) : at + 40]} and ...{b[max(at - 40, 0) : at + 40]}"
                        )
            print(f"  equal: {cell}, {preemptions} preemptions", file=sys.stderr)

    def test_every_tensor_parallel_layout_under_mpirun(self):
        for i, tp in enumerate((1, 2, 3, 4, 5, 7, 8)):
            mode = ("greedy", "sampled")[i % 2]
            self.check(mode, layout=f"tp={tp}", threads=1, workers="mpirun")
        for tp in (1, 2):
            self.check("sampled", layout=f"tp={tp}", threads=2, workers="mpirun")

    def test_among_fifteen_others(self):
        self.check("greedy", crowd="among-15", layout="tp=1", threads=2)
        self.check("sampled", crowd="among-15", layout="tp=3", threads=1)
        self.check("sampled", crowd="among-15", layout="tp=2", threads=2, prefill_chunk=7)

    def test_every_pipeline_stage_count_and_replica_count_under_mpirun(self):
        self.check("greedy", layout="pp=2", threads=1, workers="mpirun")
        self.check("sampled", crowd="among-15", layout="pp=2,tp=2", threads=1)
        self.check("sampled", crowd="among-15", layout="dp=2,tp=2", threads=1)
        self.check("greedy", crowd="among-15", layout="dp=3", threads=1)

    def test_every_prefill_chunk(self):
        for i, chunk in enumerate((1, 7, 64)):
            self.check("greedy", layout="tp=1", prefill_chunk=chunk)
            self.check("sampled", layout=f"tp={i + 2}", threads=1, prefill_chunk=chunk)

    def test_kv_memory_for_one_request_at_a_time(self):
        # 7 blocks of 32 tokens: two long prompts and the one block that admission keeps free.
        self.check("greedy", crowd="among-5-long", layout="tp=1", kv_blocks=7)
        self.check("sampled", crowd="among-5-long", layout="tp=2", threads=1, kv_blocks=7)

    def test_four_samples(self):
        self.check("sampled", n=4, layout="tp=4", threads=1)
        self.check("greedy", n=4, layout="tp=2", threads=2)
        self.check("sampled", n=4, layout="tp=1", kv_blocks=7)

    def test_every_kernel_path_of_this_machine(self):
        tried = subprocess.run(
            [PHALANX, "run", "--model", MODEL, "--prompt", "a", "--cpu-path", "none"],
            capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(tried.returncode, 2, tried.stderr)
        names = tried.stderr.split("this machine has ", 1)[1].strip().split("\n")[0]
        paths = [name.strip() for name in names.split(",")]
        self.assertIn("portable", paths)
        for path in paths:
            self.check("greedy", layout="tp=1", cpu_path=path)
            self.check("sampled", layout="tp=2", threads=1, cpu_path=path)


if __name__ == "__main__":
    PHALANX = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
