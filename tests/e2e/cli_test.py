#!/usr/bin/env python3
"""The commands: help, JSON, several prompts and samples, stops, and that a served answer is the same
as one of `run`.

    cli_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import signal
import subprocess
import unittest

import harness

DEMO = str(harness.DEMO_MODEL)
COMMANDS = ("run", "serve", "worker", "generate", "status", "tokenize", "bench")
PROMPT = "Once upon a time"


class Cli(unittest.TestCase):
    maxDiff = None

    def succeed(self, *arguments, stdin=b""):
        result = harness.run(*arguments, stdin=stdin)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return result.stdout.decode()

    def answers(self, *arguments):
        return [json.loads(line)
                for line in self.succeed("run", "--model", DEMO, "--json", *arguments).splitlines()]

    def one(self, *arguments):
        answers = self.answers(*arguments)
        self.assertEqual(len(answers), 1)
        return answers[0]

    def test_help_and_version_of_all_commands(self):
        self.assertIn("--version", self.succeed("--help"))
        for command in COMMANDS:
            with self.subTest(command=command):
                self.assertIn(command, self.succeed("--help"))
                self.assertIn("Usage:", self.succeed(command, "--help"))
                self.assertRegex(self.succeed(command, "--version"), r"^phalanx \d+\.\d+\.\d+\n$")
        for flag in ("--layout", "--threads", "--device", "--max-tokens", "--temperature",
                     "--top-p", "--top-k", "--min-p", "--seed", "--stop", "--token-ids",
                     "--logprobs", "--ignore-eos", "--json", "--prompts-file"):
            self.assertIn(flag, self.succeed("run", "--help"))

    def test_text_goes_to_stdout_and_logs_to_stderr(self):
        result = harness.run("run", "--model", DEMO, "--prompt", PROMPT, "--max-tokens", "12",
                             "--temperature", "0")
        self.assertEqual(result.returncode, 0)
        answer = self.one("--prompt", PROMPT, "--max-tokens", "12", "--temperature", "0")
        self.assertEqual(result.stdout.decode(), PROMPT + answer["text"] + "\n")
        self.assertIn(b"rank 0 of 1", result.stderr)
        quiet = harness.run("--log-level", "off", "run", "--model", DEMO, "--prompt", PROMPT,
                            "--max-tokens", "2")
        self.assertEqual(quiet.stderr, b"")

    def test_json_fields(self):
        answer = self.one("--prompt", PROMPT, "--max-tokens", "6", "--logprobs", "5",
                          "--prompt-logprobs", "1", "--temperature", "0", "--ignore-eos")
        for field in ("prompt_token_ids", "token_ids", "text", "finish_reason", "logprobs",
                      "prompt_logprobs", "layout", "timings", "seed"):
            self.assertIn(field, answer)
        self.assertNotIn("index", answer)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(answer["layout"], "tp=1")
        self.assertEqual([t["id"] for t in answer["logprobs"]], answer["token_ids"])
        for token in answer["logprobs"]:
            self.assertEqual(len(token["top"]), 5)
            self.assertEqual(token["top"][0], {"id": token["id"], "logprob": token["logprob"]})
            order = [(-t["logprob"], t["id"]) for t in token["top"]]
            self.assertEqual(order, sorted(order))
        self.assertEqual([t["id"] for t in answer["prompt_logprobs"]],
                         answer["prompt_token_ids"][1:])
        self.assertIsNone(self.one("--prompt", PROMPT, "--max-tokens", "1")["logprobs"])

    def test_n_gives_a_line_for_each_sample_with_its_index(self):
        answers = self.answers("--prompt", PROMPT, "--max-tokens", "8", "--temperature", "1",
                               "--seed", "5", "-n", "4", "--ignore-eos")
        self.assertEqual([a["index"] for a in answers], [0, 1, 2, 3])
        self.assertGreater(len({tuple(a["token_ids"]) for a in answers}), 1)
        alone = self.one("--prompt", PROMPT, "--max-tokens", "8", "--temperature", "1", "--seed",
                         "5", "--ignore-eos")
        self.assertEqual(alone["token_ids"], answers[0]["token_ids"])

    def test_prompts_file_is_one_batch_with_the_answers_of_each_alone(self):
        file = harness.scratch() / "prompts.jsonl"
        file.write_text('"One day"\n'
                        '{"prompt": "The cat", "id": "cat", "seed": 7, "max_tokens": 5}\n'
                        "\n[0, 672, 739]\n"
                        '{"token_ids": [0, 260], "id": "ids"}\n')
        common = ("--temperature", "1", "--seed", "3", "--max-tokens", "9", "--logprobs", "2",
                  "--ignore-eos")
        answers = self.answers("--prompts-file", str(file), *common)
        self.assertEqual([a.get("id", "") for a in answers], ["", "cat", "", "ids"])
        self.assertEqual([len(a["token_ids"]) for a in answers], [9, 5, 9, 9])
        changed = ("--temperature", "1", "--seed", "7", "--max-tokens", "5", "--logprobs", "2",
                   "--ignore-eos")
        alone = [self.one("--prompt", "One day", *common), self.one("--prompt", "The cat", *changed),
                 self.one("--token-ids", "0,672,739", *common),
                 self.one("--token-ids", "0,260", *common)]
        for one, of_batch in zip(alone, answers):
            for field in ("prompt_token_ids", "token_ids", "logprobs", "text"):
                self.assertEqual(one[field], of_batch[field])

    def test_generate_against_serve_gives_what_run_gives(self):
        with harness.Server("--layout", "tp=2", "--threads", "1") as server:
            for more in (("--temperature", "0"), ("--temperature", "0.8", "--seed", "11")):
                arguments = ("--prompt", PROMPT, "--max-tokens", "20", "--logprobs", "5",
                             "--ignore-eos", "--json", *more)
                served = self.succeed("generate", "--endpoint", server.endpoint, *arguments)
                ran = self.succeed("run", "--model", DEMO, *arguments)

                def exact(text):
                    """The bytes from prompt_token_ids to logprobs."""
                    return text[text.index('"prompt_token_ids"'):text.index(',"seed"')]

                self.assertEqual(exact(served), exact(ran))
                self.assertEqual(json.loads(served)["layout"], "tp=2")
            streamed = self.succeed("generate", "--endpoint", server.endpoint, "--prompt", PROMPT,
                                    "--max-tokens", "20", "--temperature", "0", "--ignore-eos")
            answer = self.one("--prompt", PROMPT, "--max-tokens", "20", "--temperature", "0",
                              "--ignore-eos")
            self.assertEqual(streamed, PROMPT + answer["text"] + "\n")

            table = self.succeed("status", "--endpoint", server.endpoint)
            self.assertRegex(table, r"serving, model demo-model, layout tp=2")
            self.assertRegex(table, r"KV blocks  0 in use")
            for pid in server.rank_pids():
                self.assertIn(str(pid), table)
            status = json.loads(self.succeed("status", "--endpoint", server.endpoint, "--json"))
            self.assertEqual(status["state"], "SERVER_STATE_SERVING")
            self.assertEqual([r["rank"] for r in status["ranks"]], [0, 1])
            engine = status["engine"]
            self.assertEqual(int(engine["kv_blocks_total"]),
                             sum(int(engine["kv_blocks_" + k]) for k in ("free", "in_use", "cached")))

            refused = harness.run("generate", "--endpoint", server.endpoint, "--prompt", "a",
                                  "--model", "another")
            self.assertEqual(refused.returncode, 2)
            self.assertEqual(refused.stdout, b"")
            self.assertRegex(refused.stderr.decode(), r'^phalanx generate: NOT_FOUND: .*"another"')

            # One that is refused keeps nobody else from an answer.
            file = harness.scratch() / "refused.jsonl"
            file.write_text('{"prompt": "One", "id": "a"}\n{"token_ids": [5000], "id": "b"}\n"Two"\n')
            some = harness.run("generate", "--endpoint", server.endpoint, "--prompts-file",
                               str(file), "--max-tokens", "3", "--json")
            self.assertEqual(some.returncode, 3)
            self.assertIn(b"phalanx generate: 1 of 3 prompts failed, the first with: ", some.stderr)
            answers = [json.loads(line) for line in some.stdout.splitlines()]
            self.assertEqual([a.get("id", "") for a in answers], ["a", "b", ""])
            self.assertEqual([a["finish_reason"] == "error" for a in answers], [False, True, False])
            self.assertIn("5000", answers[1]["error"])

            # A client that is interrupted says so.
            stopped = harness.Process([harness.binary(), "generate", "--endpoint", server.endpoint,
                                       "--prompt", "Once", "--max-tokens", "2000", "-n", "8",
                                       "--ignore-eos"])
            self.addCleanup(stopped.stop)
            with harness.Client(server.endpoint) as watcher:
                watcher.wait_for_status(lambda s: s.engine.running_requests == 1)
            stopped.signal(signal.SIGINT)
            self.assertEqual(stopped.wait(), 75)
            self.assertEqual(stopped.lines[-1], "phalanx generate: stopped by signal 2")

            # As text, the same headings as run's; from stdin, too.
            file.write_text('{"prompt": "One", "max_tokens": 3}\n{"token_ids": [5000]}\n')
            some = harness.run("generate", "--endpoint", server.endpoint, "--prompts-file", "-",
                               "-n", "2", "--temperature", "1", "--seed", "5",
                               stdin=file.read_bytes())
            self.assertEqual(some.returncode, 3)
            self.assertRegex(some.stdout.decode(), r"(?s)^== prompt 1, answer 1 \(length\)\nOne.*\n"
                             r"== prompt 1, answer 2 \(length\)\nOne.*\n"
                             r"== prompt 2 \(error: .*5000.*\)\n")
            named = self.succeed("generate", "--endpoint", server.endpoint, "--prompts-file", "-",
                                 "-n", "2", "--json", "--max-tokens", "2",
                                 stdin=b'{"prompt": "One", "id": "a"}\n')
            self.assertEqual([(a["id"], a["index"]) for a in map(json.loads, named.splitlines())],
                             [("a", 0), ("a", 1)])

    def test_tokenize_round_trip(self):
        text = "Once upon a time, naïve 日本 🙂\n\tTwo  spaces.\n"
        ids = self.succeed("tokenize", "--model", DEMO, "--no-special-tokens",
                           stdin=text.encode())
        self.assertRegex(ids, r"^[\d ]+\n$")
        self.assertEqual(self.succeed("tokenize", "--model", DEMO, "--decode",
                                      stdin=ids.encode()), text)
        with_bos = self.succeed("tokenize", "--model", DEMO, stdin=PROMPT.encode()).split()
        answer = self.one("--prompt", PROMPT, "--max-tokens", "1")
        self.assertEqual([int(i) for i in with_bos], answer["prompt_token_ids"])
        bad = harness.run("tokenize", "--model", DEMO, "--decode", stdin=b"1 two")
        self.assertEqual(bad.returncode, 2)
        self.assertIn(b'"two"', bad.stderr)
        for decode, stdin in (((), b"\xc3("), (("--decode",), b"1024")):
            bad = harness.run("tokenize", "--model", DEMO, *decode, stdin=stdin)
            self.assertEqual(bad.returncode, 2, bad.stdout)
            self.assertEqual(len(bad.stderr.splitlines()), 1)

    def test_token_ids_need_no_tokenizer(self):
        model = str(harness.GOLDEN_MODELS / "llama-gqa-tied")
        ids = ("--token-ids", "1,2,3", "--max-tokens", "4", "--temperature", "0", "--ignore-eos")
        answer = json.loads(self.succeed("run", "--model", model, *ids, "--json"))
        self.assertEqual(len(answer["token_ids"]), 4)
        self.assertEqual(answer["text"], "")
        printed = self.succeed("run", "--model", model, *ids)
        self.assertIn("\n" + ",".join(map(str, answer["token_ids"])) + "\n", printed)
        for more in (("--prompt", PROMPT), ("--token-ids", "1", "--stop", "a")):
            refused = harness.run("run", "--model", model, *more)
            self.assertEqual(refused.returncode, 2, refused.stdout)
            self.assertIn(b"tokenizer", refused.stderr)
            self.assertEqual(len(refused.stderr.splitlines()), 1, refused.stderr)

    def test_tokenize_with_a_sentencepiece_model(self):
        model = str(harness.ROOT / "tests" / "goldens" / "tokenizer" / "sentencepiece")
        text = "Chloé saw a 本 by the sea.\n"
        ids = self.succeed("tokenize", "--model", model, stdin=text.encode())
        self.assertEqual(ids.split()[0], "1")
        self.assertEqual(self.succeed("tokenize", "--model", model, "--decode",
                                      "--skip-special-tokens", stdin=ids.encode()), text)

    def test_a_stop_string_across_token_borders(self):
        common = ("--prompt", PROMPT, "--max-tokens", "24", "--temperature", "0", "--ignore-eos")
        whole = self.one(*common)
        first = self.succeed("tokenize", "--model", DEMO, "--decode",
                             stdin=" ".join(map(str, whole["token_ids"][:5])).encode())
        # The last two characters of the fifth token's text and three of what follows it.
        stop = whole["text"][len(first) - 2:len(first) + 3]
        self.assertEqual(len(stop), 5)
        cut = self.one(*common, "--stop", stop)
        self.assertEqual(cut["text"], whole["text"][:whole["text"].index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")
        self.assertLess(len(cut["token_ids"]), 24)
        self.assertEqual(cut["token_ids"], whole["token_ids"][:len(cut["token_ids"])])
        streamed = self.succeed("run", "--model", DEMO, *common, "--stop", stop)
        self.assertEqual(streamed, PROMPT + cut["text"] + "\n")

    def test_ignore_eos_goes_on_where_the_answer_would_end(self):
        common = ("--prompt", PROMPT, "--max-tokens", "1000", "--temperature", "0")
        ended = self.one(*common)
        self.assertEqual(ended["finish_reason"], "stop")
        self.assertEqual(ended["token_ids"][-1], 1)
        on = self.one(*common, "--ignore-eos")
        self.assertEqual(on["finish_reason"], "length")
        self.assertEqual(len(on["token_ids"]), 1000)
        self.assertEqual(on["token_ids"][:len(ended["token_ids"])], ended["token_ids"])
        stopped = self.one(*common, "--stop-token-ids", str(ended["token_ids"][3]))
        end = ended["token_ids"].index(ended["token_ids"][3]) + 1
        self.assertEqual(stopped["token_ids"], ended["token_ids"][:end])

    def test_what_stdout_does_not_take_is_a_failure(self):
        run = ("run", "--model", DEMO, "--prompt", PROMPT, "--max-tokens", "2")
        too_large = ("--token-ids", ",".join(["1"] * 100), "--kv-blocks", "2")  # a prompt that fails
        for command in (run, run + ("--json",), run + too_large, ("plan", "--model", DEMO),
                        ("tokenize", "--model", DEMO), ("--version",)):
            for closed in (False, True):
                with self.subTest(command=command, closed=closed), open("/dev/full", "wb") as full:
                    shell = ["sh", "-c", 'exec "$0" "$@"' + (" >&-" if closed else "")]
                    result = subprocess.run([*shell, harness.binary(), *command], input=b"a b c",
                                            stdout=full, stderr=subprocess.PIPE, check=False,
                                            timeout=harness.DEADLINE)
                    self.assertEqual(result.returncode, 1, result.stderr.decode())
                    self.assertIn(b"could be written to stdout", result.stderr)

    def test_more_prompts_than_the_queue_holds(self):
        path = harness.scratch() / "prompts.jsonl"
        path.write_text("".join(f'"Once upon a time {i}"\n' for i in range(30)))
        answers = self.answers("--prompts-file", str(path), "--max-tokens", "3", "--max-queue", "2",
                               "--max-sequences", "2")
        self.assertEqual([answer["finish_reason"] for answer in answers], ["length"] * 30)

    def test_run_says_why_each_prompt_failed(self):
        path = harness.scratch() / "prompts.jsonl"
        path.write_text('{"prompt": "hi", "max_tokens": 100}\n{"prompt": "yo", "max_tokens": 5}\n'
                        '{"prompt": "ho", "max_tokens": 300}\n')
        result = harness.run("run", "--model", DEMO, "--prompts-file", str(path), "--kv-blocks", "2")
        self.assertEqual(result.returncode, 3)
        self.assertIn(b"phalanx run: 2 of 3 prompts failed, the first with: the request needs 4",
                      result.stderr)
        text = result.stdout.decode()
        self.assertIn("== prompt 1 (error: the request needs 4 KV blocks", text)
        self.assertIn("== prompt 2 (", text)
        self.assertIn("== prompt 3 (error: the request needs 10 KV blocks", text)

    def test_run_prints_an_answer_before_later_ones_are_there_and_tells_of_a_signal(self):
        # Two threads of gRPC's are there with two ranks; none takes the signal from who handles it.
        for layout, stop in (("tp=1", signal.SIGINT), ("tp=2", signal.SIGTERM)):
            path = harness.scratch() / "prompts.jsonl"
            path.write_text('{"prompt": "a", "max_tokens": 3}\n' +
                            '{"prompt": "b", "max_tokens": 2000}\n' * 8)
            run = subprocess.Popen([harness.binary(), "run", "--model", DEMO, "--json", "--layout",
                                    layout, "--ignore-eos", "--prompts-file", str(path)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(run.kill)
            self.assertEqual(len(json.loads(run.stdout.readline())["token_ids"]), 3)
            run.send_signal(stop)
            rest, stderr = run.communicate(timeout=harness.DEADLINE)
            self.assertEqual(rest, b"", "the test's answers are too short to be interrupted")
            self.assertEqual(run.returncode, 75, layout)
            self.assertIn(f"phalanx run: stopped by signal {stop.value}".encode(), stderr)

    def test_a_host_list_that_is_empty_is_no_default(self):
        for command in (("plan",), ("run", "--prompt", "a"), ("serve",)):
            refused = harness.run(*command, "--model", DEMO, "--hosts", "")
            self.assertEqual(refused.returncode, 2, command)
            self.assertIn(b"--hosts: expected a value, found nothing", refused.stderr)

    def test_equal_ids_are_refused_before_anything_is_started(self):
        path = harness.scratch() / "prompts.jsonl"
        path.write_text('{"prompt": "a", "id": "same"}\n{"prompt": "b", "id": "same"}\n')
        refused = harness.run("run", "--model", DEMO, "--prompts-file", str(path))
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b'prompt 2: id "same" is prompt 1\'s, too', refused.stderr)


class Stops(unittest.TestCase):
    def test_one_signal_that_comes_twice_is_one(self):
        # `timeout` and batch systems send it to a process and to its group.
        with harness.Server("--workers", "threads") as server, \
                harness.Client(server.endpoint) as client:
            server.signal(signal.SIGUSR2)  # is nobody's
            stream = client.begin(client.request("Once", max_tokens=400, ignore_eos=True))
            server.signal(signal.SIGTERM)
            server.wait_for_line("taking no more requests")
            server.signal(signal.SIGTERM)
            tokens = sum(len(message.delta.token_ids) for message in stream)
            self.assertGreater(tokens, 300)
            self.assertEqual(server.wait(), 0)
            self.assertFalse(server.endpoint_file.exists())

    def test_a_second_signal_ends_at_once(self):
        with harness.Server("--workers", "threads", "--max-sequences", "4") as server, \
                harness.Client(server.endpoint) as client:
            # Far more than a second's work; a stream that is dropped would be cancelled.
            stream = client.begin(client.request("Once", max_tokens=2000, n=16, ignore_eos=True))
            server.signal(signal.SIGTERM)
            server.wait_for_line("taking no more requests")
            # One that comes within a second is the same one.
            while server.popen.poll() is None:
                server.signal(signal.SIGINT)
                try:
                    server.popen.wait(0.1)
                except subprocess.TimeoutExpired:
                    pass
            self.assertEqual(server.wait(), 75)
            del stream
            self.assertIn("second signal 2: stopping at once", "\n".join(server.lines))

    def test_a_signal_at_any_moment_of_the_start_ends_it(self):
        for workers in ("threads", "mpirun"):
            command = [harness.binary(), "--log-level", "debug", "serve", "--model", DEMO,
                       "--listen", "127.0.0.1:0", "--layout", "dp=2", "--workers", workers]
            with harness.Process(command) as whole:
                whole.wait_for_line('serving "')
                lines = len(whole.lines)
            self.assertGreaterEqual(lines, 3)
            for line in range(1, lines + 1):
                with self.subTest(workers=workers, line=line), harness.Process(command) as server:
                    server.wait_for_lines(line)
                    server.signal(signal.SIGTERM)
                    # 0: it serves by then, and is asked to end.
                    self.assertIn(server.wait(), (0, 75), server.lines)

    def test_the_endpoint_file_of_the_next_server_stays(self):
        with harness.Server("--workers", "threads") as first:
            first.endpoint_file.write_text("127.0.0.1:9\n")
            first.signal(signal.SIGTERM)
            self.assertEqual(first.wait(), 0)
            self.assertEqual(first.endpoint_file.read_text(), "127.0.0.1:9\n")


if __name__ == "__main__":
    harness.main()
