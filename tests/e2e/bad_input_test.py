#!/usr/bin/env python3
"""Bad checkpoints, prompts, parameters, flags and groups: one clear line and the right exit code or
status, no crash, and a server that goes on serving.

    bad_input_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import re
import shutil
import socket
import struct
import unittest

import grpc

import harness

SINGLE = harness.GOLDEN_MODELS / "llama-gqa-tied"
SHARDED = harness.GOLDEN_MODELS / "mistral-full"
LOG_LINE = re.compile(r"^\[\d\d:\d\d:\d\d\.\d{3} \w+\] ")
HUNDRED_MB = 100_000_000


def read_safetensors(path):
    """The header, its padding and the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length]), data[8 + length:]


def write_safetensors(path, header, data, length=None):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


class BadInput(unittest.TestCase):
    maxDiff = None

    def copy_of(self, model):
        """A model that may be spoiled, with a tokenizer, which the golden ones lack."""
        copy = harness.scratch() / model.name
        shutil.copytree(model, copy)
        shutil.copy(harness.DEMO_MODEL / "tokenizer.json", copy)
        return copy

    def assert_fails(self, result, code, *fragments):
        """One line that holds the fragments, after what was logged, and this exit code."""
        stderr = result.stderr.decode(errors="replace")
        self.assertEqual(result.returncode, code, stderr[-2000:])
        lines = [line for line in stderr.splitlines() if line and not LOG_LINE.match(line)]
        self.assertEqual(len(lines), 1, stderr[-2000:])
        self.assertRegex(lines[0], r"^phalanx( \w+)?: ")
        self.assertLess(len(lines[0]), 600)
        for trace in ("terminate", "what():", "std::", "Status(", "src/"):
            self.assertNotIn(trace, lines[0])
        # An address; the name of a temporary directory may hold the two letters by chance.
        self.assertNotRegex(lines[0], r"\b0x[0-9a-fA-F]+")
        for fragment in fragments:
            self.assertIn(fragment, lines[0])
        print(f"  {code} {lines[0][:300]}")

    def run_model(self, model, *more):
        return harness.run("run", "--model", str(model), "--token-ids", "1,2,3", "--max-tokens",
                           "4", *more)

    # The copies are whole before they are spoiled.
    def test_the_unspoiled_copies_run(self):
        for model in (SINGLE, SHARDED):
            result = self.run_model(self.copy_of(model), "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(len(json.loads(result.stdout)["token_ids"]), 4)

    def test_header_length_of_2_to_the_63(self):
        model = self.copy_of(SINGLE)
        file = model / "model.safetensors"
        file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
        self.assert_fails(self.run_model(model), 2, "model.safetensors", str(2**63))

    def test_header_that_is_not_json(self):
        model = self.copy_of(SINGLE)
        file = model / "model.safetensors"
        file.write_bytes(struct.pack("<Q", 16) + b"\xff" * 16)
        self.assert_fails(self.run_model(model), 2, "model.safetensors")

    def test_truncated_shard(self):
        model = self.copy_of(SHARDED)
        file = model / "model-00002-of-00003.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.assert_fails(self.run_model(model), 2, file.name)

    def test_empty_shard(self):
        model = self.copy_of(SHARDED)
        (model / "model-00002-of-00003.safetensors").write_bytes(b"")
        self.assert_fails(self.run_model(model), 2, "model-00002-of-00003.safetensors")

    def test_missing_shard(self):
        model = self.copy_of(SHARDED)
        (model / "model-00002-of-00003.safetensors").unlink()
        self.assert_fails(self.run_model(model), 2, "model-00002-of-00003.safetensors")

    def spoil_header(self, spoil):
        model = self.copy_of(SINGLE)
        file = model / "model.safetensors"
        header, data = read_safetensors(file)
        spoil(header, [name for name in header if name != "__metadata__"])
        write_safetensors(file, header, data)
        return model

    def test_overlapping_offsets(self):
        def spoil(header, names):
            second = sorted(names, key=lambda n: header[n]["data_offsets"][0])[1]
            begin, end = header[second]["data_offsets"]
            header[second]["data_offsets"] = [begin - 4, end - 4]
        self.assert_fails(self.run_model(self.spoil_header(spoil)), 2, "model.safetensors",
                          "overlap")

    def test_shape_times_dtype_overflows(self):
        def spoil(header, names):
            header[names[0]]["shape"] = [2**62, 4]
        self.assert_fails(self.run_model(self.spoil_header(spoil)), 2, "model.safetensors")

    def test_shape_does_not_fill_its_bytes(self):
        def spoil(header, names):
            header[names[0]]["shape"][0] += 1
        self.assert_fails(self.run_model(self.spoil_header(spoil)), 2, "model.safetensors")

    def test_missing_tensor(self):
        missing = "model.layers.1.mlp.up_proj.weight"
        model = self.copy_of(SINGLE)
        file = model / "model.safetensors"
        header, data = read_safetensors(file)
        begin, end = header.pop(missing)["data_offsets"]
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["data_offsets"][0] >= end:
                tensor["data_offsets"] = [o - (end - begin) for o in tensor["data_offsets"]]
        write_safetensors(file, header, data[:begin] + data[end:])
        self.assert_fails(self.run_model(model), 2, missing)

    def test_bytes_that_belong_to_no_tensor(self):
        def spoil(header, names):
            del header[sorted(names, key=lambda n: header[n]["data_offsets"][0])[1]]
        self.assert_fails(self.run_model(self.spoil_header(spoil)), 2, "model.safetensors")

    def test_config_contradicts_the_tensors(self):
        for key, value in (("hidden_size", 128), ("num_hidden_layers", 3), ("vocab_size", 300),
                           ("num_attention_heads", 8), ("intermediate_size", 64)):
            with self.subTest(key=key):
                model = self.copy_of(SINGLE)
                config = json.loads((model / "config.json").read_text())
                self.assertNotEqual(config[key], value)
                config[key] = value
                (model / "config.json").write_text(json.dumps(config))
                self.assert_fails(self.run_model(model), 2)

    def test_broken_or_missing_config(self):
        for name, text in (("config.json", "{"), ("config.json", None), ("tokenizer.json", "[]"),
                           ("generation_config.json", "{")):
            with self.subTest(name=name, text=text):
                model = self.copy_of(SINGLE)
                if text is None:
                    (model / name).unlink()
                else:
                    (model / name).write_text(text)
                self.assert_fails(self.run_model(model), 2, name)

    def test_a_tokenizer_with_more_tokens_than_the_model_is_warned_of(self):
        model = self.copy_of(SINGLE)
        said = harness.run("run", "--model", str(model), "--token-ids", "1", "--max-tokens", "1")
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertIn(b"the tokenizer has 1024 tokens, but config.json says vocab_size 257",
                      said.stderr)
        fits = harness.run("run", "--model", str(harness.DEMO_MODEL), "--prompt", "a",
                           "--max-tokens", "1")
        self.assertNotIn(b"vocab_size", fits.stderr)

    def test_quantized_checkpoint_is_refused_by_name(self):
        model = self.copy_of(SINGLE)
        config = json.loads((model / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (model / "config.json").write_text(json.dumps(config))
        self.assert_fails(self.run_model(model), 2, "quantization_config")

    def test_fp8_is_made_of_bf16_alone(self):
        self.assert_fails(self.run_model(SINGLE, "--weight-dtype", "fp8_e4m3"), 2,
                          "--weight-dtype fp8_e4m3: the checkpoint's weights are F32")
        result = self.run_model(harness.GOLDEN_MODELS / "llama-gqa-tied-bf16", "--weight-dtype",
                                "fp8_e4m3")
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_fp8_checkpoint_without_its_scales(self):
        model = self.copy_of(harness.GOLDEN_MODELS / "llama-fp8-row")
        self.assertEqual(self.run_model(model).returncode, 0)
        header, data = read_safetensors(model / "model.safetensors")
        module = "model.layers.0.self_attn.q_proj."
        header[module + "input_scale"] = header.pop(module + "weight_scale")
        write_safetensors(model / "model.safetensors", header, data)
        self.assert_fails(self.run_model(model), 2, module + "weight_scale is there")

    def test_path_that_leaves_the_directory_in_the_index(self):
        for escape in ("../model.safetensors", "/etc/passwd"):
            model = self.copy_of(SHARDED)
            index = json.loads((model / "model.safetensors.index.json").read_text())
            name = next(iter(index["weight_map"]))
            index["weight_map"][name] = escape
            (model / "model.safetensors.index.json").write_text(json.dumps(index))
            self.assert_fails(self.run_model(model), 2, "index.json", escape)

    def test_nan_weights(self):
        for tensor in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight",
                       "model.norm.weight"):
            with self.subTest(tensor=tensor):
                model = self.copy_of(SINGLE)
                file = model / "model.safetensors"
                header, data = read_safetensors(file)
                begin, _ = header[tensor]["data_offsets"]
                data = data[:begin] + struct.pack("<f", float("nan")) + data[begin + 4:]
                write_safetensors(file, header, data)
                self.assert_fails(self.run_model(model), 2, tensor, "NaN")

    def test_nan_weights_with_mpirun(self):
        model = self.copy_of(SINGLE)
        file = model / "model.safetensors"
        header, data = read_safetensors(file)
        begin, _ = header["model.layers.1.mlp.down_proj.weight"]["data_offsets"]
        data = data[:begin] + struct.pack("<f", float("nan")) + data[begin + 4:]
        write_safetensors(file, header, data)
        result = self.run_model(model, "--layout", "tp=2")
        # Ranks and mpirun have their own lines; the command's own is the last.
        lines = result.stderr.decode().splitlines()
        own = [line for line in lines if line.startswith("phalanx run: ")]
        self.assertEqual(result.returncode, 2, lines)
        self.assertEqual(len(own), 1, lines)
        self.assertIn("NaN", own[0])
        print(f"  {own[0]}")

    def test_prompts_and_parameters_on_the_command_line(self):
        demo = str(harness.DEMO_MODEL)
        long = ",".join(["5"] * 2048)
        for code, fragment, arguments in (
                (2, "vocabulary", ("--token-ids", "1024")),
                (2, "vocabulary", ("--token-ids", "-1")),
                (2, "token", ("--token-ids", "99999999999")),
                (2, "empty", ("--prompt", "")),
                (2, "UTF-8", ("--prompt", b"\xc3(")),
                (2, "2048", ("--token-ids", long)),
                (2, "max_tokens", ("--prompt", "a", "--max-tokens", "-1")),
                (2, "max_tokens", ("--prompt", "a", "--max-tokens", str(2**31))),
                (2, "temperature", ("--prompt", "a", "--temperature", "nan")),
                (2, "temperature", ("--prompt", "a", "--temperature", "-1")),
                (2, "--temperature", ("--prompt", "a", "--temperature", "warm")),
                (2, "top_p", ("--prompt", "a", "--top-p", "0")),
                (2, "--logit-bias", ("--prompt", "a", "--logit-bias", "x")),
                (2, "tp=9", ("--prompt", "a", "--layout", "tp=9")),
                (2, "pp=9", ("--prompt", "a", "--layout", "pp=9")),
                (2, "sp=9", ("--prompt", "a", "--layout", "sp=9")),
                (2, "no experts", ("--prompt", "a", "--layout", "tp=2,ep=2")),
                (2, "layout", ("--prompt", "a", "--layout", "tp=0")),
                (2, "layout", ("--prompt", "a", "--layout", "tp=two")),
                (2, "too many for one machine", ("--prompt", "a", "--layout", "dp=60000")),
                (2, "more than 65536 ranks", ("--prompt", "a", "--layout", "dp=60000,tp=8")),
                (2, "--hosts", ("--prompt", "a", "--workers", "threads", "--hosts", "a:2")),
                (2, '"--nonsense"', ("--prompt", "a", "--nonsense", "value", "--json")),
                (2, "found -1", ("--prompt", "a", "--seed", "-1")),
                (2, "found 18446744073709551616", ("--prompt", "a", "--seed", str(2**64))),
                (2, "--device", ("--prompt", "a", "--device", "gpu")),
                (2, "--max-context", ("--prompt", "a", "--max-context", "99999")),
                (2, "--kv-memory", ("--prompt", "a", "--kv-memory", "much")),
                (2, "no prompt", ())):
            with self.subTest(arguments=[a[:40] for a in arguments]):
                self.assert_fails(harness.run("run", "--model", demo, *arguments), code, fragment)

    def test_other_commands(self):
        missing = str(harness.scratch() / "missing")
        for code, fragment, arguments in (
                (2, "missing", ("run", "--model", missing, "--prompt", "a")),
                (2, "missing", ("serve", "--model", missing)),
                (2, "missing", ("tokenize", "--model", missing)),
                (2, "missing", ("worker", "--model", missing, "--coordinator", "127.0.0.1:1")),
                (2, "frobnicate", ("frobnicate",)),
                (2, "frobnicate", ("bench", "frobnicate")),
                (2, "subcommand", ()),
                (2, "subcommand", ("bench",)),
                (2, "--threads", ("bench", "recovery", "--threads", "-3")),
                (2, "found nan", ("serve", "--model", missing, "--start-timeout", "nan")),
                (2, "found 0", ("serve", "--model", missing, "--step-timeout", "0")),
                (2, "--hosts excludes --hostfile",
                 ("serve", "--model", missing, "--hosts", "a:2", "--hostfile", "b")),
                (2, "no port", ("worker", "--model", missing, "--coordinator", "127.0.0.1")),
                (2, "--model", ("run", "--prompt", "a")),
                (2, "99999", ("serve", "--model", str(harness.DEMO_MODEL), "--listen",
                              "127.0.0.1:99999")),
                (2, "/missing/mpirun", ("serve", "--model", str(harness.DEMO_MODEL), "--listen",
                                        "127.0.0.1:0", "--mpirun", "/missing/mpirun")),
                (1, "no server answers", ("status", "--endpoint", "127.0.0.1:1")),
                (1, "no server answers", ("generate", "--endpoint", "127.0.0.1:1", "--prompt",
                                          "a")),
                (1, "no coordinator", ("worker", "--model", str(harness.DEMO_MODEL),
                                       "--coordinator", "127.0.0.1:1", "--connect-timeout", "1"))):
            with self.subTest(arguments=arguments):
                self.assert_fails(harness.run(*arguments), code, fragment)

    def test_malformed_prompts_file(self):
        file = harness.scratch() / "prompts.jsonl"
        for fragment, content in ((":2: ", b'"a"\n{"prompt":\n'), (":1: ", b'"\xc3("\n'),
                                  (":1: ", b'{"prompt": 3}\n'), (":1: ", b"7\n"),
                                  (":1: ", b'{"prompt": "a", "colour": 1}\n'),
                                  (":3: ", b'"a"\n\n{}\n'), ("no prompt", b"\n"),
                                  ("prompt 2", b'"a"\n[1024]\n'), (":1: ", b"[1.5]\n"),
                                  (":1: ", b"[" * 100_000)):
            with self.subTest(content=content[:40]):
                file.write_bytes(content)
                self.assert_fails(harness.run("run", "--model", str(harness.DEMO_MODEL),
                                              "--prompts-file", str(file)), 2, fragment)
        for path in (file.parent / "missing", file.parent):
            self.assert_fails(harness.run("run", "--model", str(harness.DEMO_MODEL),
                                          "--prompts-file", str(path)), 2, "can't be read")

    def test_a_hundred_megabytes_in_a_prompts_file(self):
        file = harness.scratch() / "prompts.jsonl"
        file.write_bytes(b'"' + b"a" * HUNDRED_MB + b'"\n')
        self.assert_fails(harness.run("run", "--model", str(harness.DEMO_MODEL), "--prompts-file",
                                      str(file)), 2, "text")
        file.unlink()

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for flag in ("--listen", "--control-listen"):
                other = () if flag == "--listen" else ("--listen", "127.0.0.1:0")
                self.assert_fails(harness.run("serve", "--model", str(harness.DEMO_MODEL), flag,
                                              address, *other), 2, address, "in use")

    def test_the_command_for_ranks_is_told_whatever_the_level_of_the_log(self):
        serve = harness.Process([harness.binary(), "serve", "--model", str(harness.DEMO_MODEL),
                                 "--listen", "127.0.0.1:0", "--workers", "external", "--layout",
                                 "tp=2", "--log-level", "error"])
        self.addCleanup(serve.stop)
        serve.wait_for_line(r"mpirun -np 2 .* worker --coordinator ")

    def test_a_wrong_number_of_ranks(self):
        serve = harness.Server("--workers", "external", "--layout", "tp=2", "--threads", "1",
                               wait=False)
        self.addCleanup(serve.stop)
        command, environment = serve.command_for_ranks()

        def start(ranks):
            return harness.Process(
                ["3" if a == "2" and b == "-np" else a
                 for a, b in zip(command, [""] + command)] if ranks == 3 else command,
                env=environment)

        wrong = start(3)
        self.addCleanup(wrong.stop)
        self.assertEqual(wrong.wait(), 2, wrong.lines)
        own = [text for text in wrong.lines if text.startswith("phalanx worker: ")]
        self.assertTrue(own, wrong.lines)
        print("  " + "\n  ".join(own))
        for text in own:
            self.assertIn("tp=2", text)
            self.assertIn("3", text)
        # serve still waits for the right number.
        right = start(2)
        self.addCleanup(right.stop)
        serve.wait_for_line('serving "')
        serve.signal(harness.TERM)
        self.assertEqual(serve.wait(), 0)

    def test_a_wrong_token(self):
        serve = harness.Server("--workers", "external", "--layout", "tp=1", "--threads", "1",
                               wait=False)
        self.addCleanup(serve.stop)
        line = serve.wait_for_line(r"--coordinator (\S+)")
        result = harness.run("worker", "--model", str(harness.DEMO_MODEL), "--coordinator",
                             line.group(1), "--token", "wrong", "--threads", "1")
        self.assertEqual(result.returncode, 2, result.stderr)
        print("  " + result.stderr.decode().splitlines()[0])
        self.assertIn(b"token", result.stderr)


class BadRequests(harness.ServedTestCase):
    def tearDown(self):
        """Whatever it was asked, it still serves."""
        self.assertEqual(self.client.health(), "SERVING")
        answer = self.client.generate(self.client.request(temperature=0.0))
        self.assertEqual(len(answer["finished"]), 1)
        self.client.wait_for_status(lambda s: s.engine.kv_blocks_in_use == 0)
        self.assertIsNone(self.server.popen.poll())

    def assert_refused(self, field, request):
        details = self.assert_fails_with(
            grpc.StatusCode.INVALID_ARGUMENT,
            lambda: list(self.client.stub.Generate(request, timeout=harness.DEADLINE)))
        self.assertTrue(details.startswith(field + ":"), f"{field}: {details}")

    def test_parameters(self):
        request, pb = self.client.request, self.client.pb
        ids = lambda *ids: pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
        for field, bad in (
                ("sampling.temperature", request(temperature=float("nan"))),
                ("sampling.temperature", request(temperature=float("inf"))),
                ("sampling.temperature", request(temperature=-1.0)),
                ("sampling.top_p", request(top_p=0.0)),
                ("sampling.top_k", request(top_k=-1)),
                ("sampling.min_p", request(min_p=2.0)),
                ("sampling.max_tokens", request(max_tokens=-1)),
                ("sampling.max_tokens", request(max_tokens=0)),
                ("sampling.max_tokens", request(max_tokens=2**31)),
                ("sampling.min_tokens", request(min_tokens=9)),
                ("sampling.n", request(n=0)),
                ("sampling.n", request(n=-1)),
                ("sampling.n", request(n=-(2**31))),
                ("sampling.n", request(n=2**31 - 1)),
                ("sampling.logprobs", request(logprobs=-1)),
                ("sampling.logprobs", request(logprobs=129)),
                ("sampling.stop", request(stop=[""])),
                ("sampling.stop_token_ids", request(stop_token_ids=[1024])),
                ("sampling.logit_bias", request(logit_bias={1024: 1.0})),
                ("sampling.logit_bias", request(logit_bias={1: float("nan")})),
                ("text", request("")),
                ("prompt", pb.GenerateRequest()),
                ("token_ids", ids()),
                ("token_ids", ids(1024)),
                ("token_ids", ids(-1)),
                ("token_ids", ids(*[5] * 2048)),
                ("text", request("a " * 5000)),
                ("request_id", pb.GenerateRequest(text="a", request_id="x" * 257)),
                ("cache_salt", pb.GenerateRequest(text="a", cache_salt="x" * 257))):
            with self.subTest(field=field):
                self.assert_refused(field, bad)

    def test_a_hundred_megabytes_of_a(self):
        self.assert_refused("text", self.client.request("a" * HUNDRED_MB))
        text = self.client.pb.TokenizeRequest(text="a" * 2 * HUNDRED_MB)
        self.assert_fails_with(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            lambda: self.client.stub.Tokenize(text, timeout=harness.DEADLINE))

    def test_bytes_that_are_not_utf8_or_no_message(self):
        # Protobuf for Python refuses to build such text: these are the bytes of field 3.
        call = self.client.channel.unary_stream("/phalanx.v1.Inference/Generate")
        for raw, start in ((b"\x1a\x02\xc3(", "text:"), (b"\x1a\xff\xff\xff\xff\x0f", "")):
            details = self.assert_fails_with(grpc.StatusCode.INVALID_ARGUMENT,
                                             lambda: list(call(raw, timeout=harness.DEADLINE)))
            self.assertTrue(details.startswith(start))

    def test_unknown_model(self):
        request = self.client.request()
        request.model = "no such model"
        self.assert_fails_with(
            grpc.StatusCode.NOT_FOUND,
            lambda: list(self.client.stub.Generate(request, timeout=harness.DEADLINE)),
            "no such model")

    def test_duplicate_live_request_id(self):
        request = self.client.request(max_tokens=2000, n=4, temperature=1.0, ignore_eos=True)
        request.request_id = "twin"
        stream = self.client.begin(request)
        self.assert_fails_with(
            grpc.StatusCode.ALREADY_EXISTS,
            lambda: list(self.client.stub.Generate(request, timeout=harness.DEADLINE)), "twin")
        stream.cancel()
        self.client.wait_for_status(lambda s: s.engine.running_requests == 0)
        short = self.client.request()
        short.request_id = "twin"
        self.assertEqual(self.client.status_of(short)[0], grpc.StatusCode.OK)


if __name__ == "__main__":
    harness.main()
