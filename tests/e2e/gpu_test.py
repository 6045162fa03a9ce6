#!/usr/bin/env python3
"""--device cuda where there is no GPU: what needs none works, and all else is refused in one clear
line before a rank is started.

    gpu_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import unittest

import harness

CONFIGS = harness.ROOT / "cluster-configs"
MODELS = harness.ROOT / "tests" / "parallel" / "models"
DEMO = ("--model", str(harness.DEMO_MODEL))
LOG_LINE = re.compile(r"^\[\d\d:\d\d:\d\d\.\d{3} \w+\] ")
HAS_DRIVER = pathlib.Path("/proc/driver/nvidia/version").exists()


def lines_of(result):
    return [line for line in result.stderr.decode(errors="replace").splitlines() if line]


class WithoutAGpu(unittest.TestCase):
    def assert_refused(self, result, *fragments):
        """Exit code 2 and nothing but one line, which holds the fragments."""
        lines = lines_of(result)
        self.assertEqual(result.returncode, 2, lines[-5:])
        self.assertEqual(len(lines), 1, lines)
        self.assertNotRegex(lines[0], LOG_LINE)
        for fragment in fragments:
            self.assertIn(fragment, lines[0])
        self.assertEqual(result.stdout, b"")
        print(f"  {lines[0]}")

    @unittest.skipIf(HAS_DRIVER, "this machine has an NVIDIA driver")
    def test_run_and_serve_say_so_before_a_rank_starts(self):
        prompt = ("--prompt", "a")
        for arguments in (("run", *DEMO, *prompt), ("run", *DEMO, *prompt, "--layout", "tp=2"),
                          ("run", *DEMO, *prompt, "--workers", "threads", "--layout", "tp=2"),
                          ("run", *DEMO, *prompt, "--device-comm", "staged"),
                          ("serve", *DEMO, "--listen", "127.0.0.1:0")):
            with self.subTest(arguments=arguments):
                result = harness.run(*arguments, "--device", "cuda")
                self.assert_refused(result, f"phalanx {arguments[0]}: ", "no CUDA device",
                                    "--device cpu")

    @unittest.skipIf(HAS_DRIVER, "this machine has an NVIDIA driver")
    def test_a_rank_names_its_host_before_it_connects(self):
        result = harness.run("worker", *DEMO, "--coordinator", "127.0.0.1:1", "--device", "cuda")
        self.assert_refused(result, "phalanx worker: host ", "no CUDA device")

    @unittest.skipIf(HAS_DRIVER, "this machine has an NVIDIA driver")
    def test_planning_for_gpus_that_nobody_describes(self):
        for arguments in (("plan",), ("run", "--prompt", "a", "--layout", "auto"),
                          ("serve", "--layout", "auto")):
            with self.subTest(arguments=arguments):
                self.assert_refused(harness.run(*arguments, *DEMO, "--device", "cuda"),
                                    "no CUDA device", "--gpu-type", "--cluster")

    def test_a_gpus_number_is_for_gpus(self):
        self.assert_refused(harness.run("worker", *DEMO, "--coordinator", "127.0.0.1:1", "--gpu",
                                        "1"), "--gpu is for --device cuda")

    def test_fast_numerics_are_for_gpus(self):
        for arguments in (("run", "--prompt", "a"), ("serve",),
                          ("worker", "--coordinator", "127.0.0.1:1"), ("plan",)):
            with self.subTest(arguments=arguments):
                self.assert_refused(harness.run(*arguments, *DEMO, "--numerics", "fast"),
                                    "--numerics fast is of GPUs alone", "add --device cuda",
                                    "--numerics exact")

    def test_nccl_is_not_between_threads(self):
        result = harness.run("run", *DEMO, "--prompt", "a", "--device", "cuda", "--workers",
                             "threads", "--device-comm", "nccl")
        self.assert_refused(result, "--device-comm nccl")

    def test_plan_needs_no_driver(self):
        model = ("--model", str(MODELS / "llama-3.1-405b"), "--json")
        for arguments in (("--cluster", str(CONFIGS / "4x8-h100.yaml")),
                          ("--device", "cuda", "--gpu-type", "8xh200"),
                          ("--device", "cuda", "--gpu-type", "8xh200", "--numerics", "fast"),
                          ("--device", "cuda", "--gpu-type", "h200", "--hosts", "a:8,b:8",
                           "--gpu-memory-fraction", "0.8")):
            with self.subTest(arguments=arguments):
                result = harness.run("plan", *model, *arguments)
                self.assertEqual(result.returncode, 0, lines_of(result))
                plan = json.loads(result.stdout)
                self.assertLessEqual(plan["chosen"]["ranks"], plan["cluster"]["devices"])
                self.assertGreaterEqual(plan["chosen"]["free_bytes"], 0)

    def test_plan_refuses_what_does_not_fit_and_names_the_nearest_layout(self):
        result = harness.run("plan", "--model", str(MODELS / "llama-3.1-405b"), "--device", "cuda",
                             "--gpu-type", "8xh100-sxm")
        self.assert_refused(result, "does not fit this cluster of 8 devices",
                            "The layout that comes nearest is tp=8 (8 ranks)")

    def test_ranks_are_given_their_gpus_and_nccls_settings(self):
        file = harness.scratch() / "c.yaml"
        file.write_text("cluster: {nccl: {debug: warn, ib_hcas: [mlx5_0, mlx5_1]}}\n"
                        "worker: {device: cuda, gpu_memory_fraction: 0.8, "
                        "profile: {numerics: fast, weight_dtype: fp8_e4m3, kv_dtype: fp8_e4m3}}\n"
                        "layout: {tp: 2, dp: 2}\n")
        with harness.Server("--workers", "external", "--cluster", str(file), wait=False) as server:
            server.wait_for_line("--replica 1 ")
            lines = [line for line in server.lines if " worker --coordinator " in line]
        self.assertEqual(len(lines), 2, server.lines)
        for line, gpus in zip(lines, ("0,1", "2,3")):
            self.assertIn(" --device cuda --device-comm auto --gpu-memory-fraction 0.8 "
                          f"--numerics fast --gpu {gpus}", line)
            self.assertIn(" --weight-dtype fp8_e4m3 --kv-dtype fp8_e4m3 ", line)
            words = shlex.split(line)
            mpirun = words.index("mpirun")
            settings = dict(word.split("=", 1) for word in words[:mpirun])
            # What a rank would find in its environment.
            command = words[mpirun:words.index("worker") - 1] + ["env"]
            ranks = subprocess.run(command, env={**os.environ, **settings}, capture_output=True,
                                   text=True, timeout=harness.DEADLINE, check=True)
            for variable in ("NCCL_DEBUG=WARN", "NCCL_IB_HCA=mlx5_0,mlx5_1"):
                self.assertEqual(ranks.stdout.split("\n").count(variable), 2, ranks.stdout)

    @unittest.skipIf(HAS_DRIVER, "this machine has an NVIDIA driver")
    def test_a_worker_that_mpirun_starts_says_so_too(self):
        with harness.Server("--workers", "external", "--device", "cuda", wait=False) as server:
            command, environment = server.command_for_ranks()
            ranks = subprocess.run(command, env=environment, capture_output=True, text=True,
                                   timeout=harness.DEADLINE, check=False)
        self.assertNotEqual(ranks.returncode, 0)
        self.assertRegex(ranks.stderr, "phalanx worker: host .*: no CUDA device")

    def test_help_and_version_need_no_driver(self):
        for command in ("run", "serve", "worker", "plan"):
            result = harness.run(command, "--help")
            self.assertEqual(result.returncode, 0, lines_of(result))
            for flag in ("--device ", "--device-comm", "--gpu-memory-fraction", "--numerics"):
                self.assertIn(flag, result.stdout.decode())
        self.assertEqual(harness.run("--version").returncode, 0)

    def test_every_fault_of_the_files_gpu_fields_has_its_line(self):
        file = harness.scratch() / "c.yaml"
        file.write_text("worker:\n  device: cuda\n  gpu_memory_fraction: 2\n"
                        "cluster:\n  nccl:\n    cross_nic: 7\n    ib_hca: mlx5_0\n")
        result = harness.run("serve", *DEMO, "--cluster", str(file))
        lines = lines_of(result)
        self.assertEqual(result.returncode, 2, lines)
        for place in ("c.yaml:3:24: worker.gpu_memory_fraction", "c.yaml:6:16: cluster.nccl.cross",
                      "c.yaml:7:5: cluster.nccl: unknown key \"ib_hca\""):
            self.assertTrue(any(place in line for line in lines), (place, lines))


if __name__ == "__main__":
    harness.main()
