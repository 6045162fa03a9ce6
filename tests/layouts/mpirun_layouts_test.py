"""Layouts of every axis as real processes: `phalanx run --json --logprobs 5` under mpirun prints the
same bytes of `token_ids` and `logprobs` for 2 to 8 ranks as for one, on a dense checkpoint and on
one with experts, both of eight layers. Usage: mpirun_layouts_test.py PATH_OF_PHALANX"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

PHALANX = None
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
DENSE = os.path.join(ROOT, "launcher", "demo-model")
EXPERTS = os.path.join(ROOT, "tests", "goldens", "models", "mixtral")
# Three KV blocks, so that several stripes hold something.
PROMPT = ",".join(str(5 + 37 * i % 140) for i in range(90))
MODES = {"greedy": ["--temperature", "0"], "sampled": ["--temperature", "0.9", "--seed", "7"]}

DENSE_LAYOUTS = """tp=3 pp=3 sp=3 dp=2 tp=2 pp=2 sp=2 pp=4 sp=4 tp=6 pp=8 sp=8 tp=2,pp=2 tp=3,pp=2
sp=2,tp=2 sp=2,pp=2 sp=2,tp=3 dp=2,tp=2 dp=2,pp=2 dp=2,sp=2 pp=2,sp=2,tp=2 dp=2,pp=2,tp=2""".split()
EXPERT_LAYOUTS = """tp=2,ep=2 tp=2,ep=1 tp=4,ep=2 sp=2,ep=2 sp=2,tp=2,ep=4 pp=2,tp=2,ep=2
pp=2,tp=3,ep=3 dp=2,tp=2,ep=2 sp=3,tp=2,ep=6""".split()


def field(line, name, following):
    """The text of one field, as printed: equal text is equal bits."""
    begin = line.index(f'"{name}":')
    return line[begin : line.index(f',"{following}":', begin)]


def run(model, mode, *arguments):
    command = [PHALANX, "run", "--model", model, "--token-ids", PROMPT, "--max-tokens", "24"]
    command += ["--json", "--logprobs", "5", "--ignore-eos", "--threads", "1", "--kv-memory", "8MiB"]
    command += MODES[mode] + list(arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    (line,) = done.stdout.splitlines()
    return json.loads(line)["layout"], field(line, "token_ids", "text"), field(line, "logprobs", "seed")


class Layouts(unittest.TestCase):
    def check(self, model, layouts):
        expected = {mode: run(model, mode, "--layout", "tp=1") for mode in MODES}
        for i, layout in enumerate(layouts):
            mode = ("greedy", "sampled")[i % 2]
            with self.subTest(layout):
                found = run(model, mode, "--layout", layout, "--workers", "mpirun")
                for axis in layout.split(","):
                    if not axis.endswith("=1"):
                        self.assertIn(axis, found[0].split(","))
                self.assertEqual(found[1], expected[mode][1])
                self.assertEqual(found[2], expected[mode][2])
                print(f"  equal: {mode} {layout}", file=sys.stderr)

    def test_dense(self):
        self.check(DENSE, DENSE_LAYOUTS)

    def test_experts(self):
        with tempfile.TemporaryDirectory() as directory:
            for name in os.listdir(EXPERTS):
                os.symlink(os.path.join(EXPERTS, name), os.path.join(directory, name))
            # The golden has no tokenizer; a service needs one. One character a token will do.
            with open(os.path.join(directory, "tokenizer.json"), "w", encoding="utf-8") as file:
                vocabulary = {chr(33 + i) if i < 94 else chr(161 + i - 94): i for i in range(157)}
                json.dump({"model": {"type": "BPE", "vocab": vocabulary, "merges": []},
                           "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
                           "decoder": {"type": "ByteLevel"}}, file)
            self.check(directory, EXPERT_LAYOUTS)


if __name__ == "__main__":
    PHALANX = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
