"""What the end-to-end tests share: real processes of the binary, watched through their output, and
gRPC stubs that are made from the .proto when a test runs.

Nothing here sleeps: every wait is for a line, a file, an answer or the end of a process, and has a
deadline.
"""

import importlib
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
DEMO_MODEL = ROOT / "launcher" / "demo-model"
GOLDEN_MODELS = ROOT / "tests" / "goldens" / "models"

# Generous: a loaded machine of two cores must pass, a hang must still end.
DEADLINE = 90

_binary = ROOT / "build" / "release" / "phalanx"
_scratch = tempfile.TemporaryDirectory(prefix="phalanx-e2e-")

# Only what the tests use of the two standard services, with their public names and numbers.
_HEALTH_PROTO = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"""
_REFLECTION_PROTO = """
syntax = "proto3";
package grpc.reflection.v1alpha;
message ServerReflectionRequest {
  oneof message_request { string list_services = 7; }
}
message ServiceResponse { string name = 1; }
message ListServiceResponse { repeated ServiceResponse service = 1; }
message ServerReflectionResponse {
  oneof message_response { ListServiceResponse list_services_response = 6; }
}
service ServerReflection {
  rpc ServerReflectionInfo(stream ServerReflectionRequest) returns (stream ServerReflectionResponse);
}
"""


def main():
    """Runs the calling script's tests; `--phalanx PATH` names the binary."""
    global _binary
    arguments = sys.argv[1:]
    if "--phalanx" in arguments:
        at = arguments.index("--phalanx")
        _binary = pathlib.Path(arguments[at + 1]).resolve()
        del arguments[at:at + 2]
    if not _binary.exists():
        sys.exit(f"{_binary} does not exist; build it or name another with --phalanx PATH")
    unittest.main(module="__main__", argv=[sys.argv[0]] + arguments)


def binary():
    return str(_binary)


def scratch():
    """A new directory that goes when the script ends."""
    return pathlib.Path(tempfile.mkdtemp(dir=_scratch.name))


def run(*arguments, stdin=b"", timeout=DEADLINE):
    """Runs the binary to its end; stdout and stderr are bytes."""
    return subprocess.run([_binary, *arguments], input=stdin, capture_output=True, timeout=timeout,
                          check=False)


def wait_for_exit_of(pid, timeout):
    """Whether process `pid`, which need not be a child, has ended by the deadline."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(handle)


class Process:
    """A running process whose stderr lines can be waited for."""

    def __init__(self, command, **options):
        self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True, errors="replace",
                                      **options)
        self.lines = []  # of stderr
        self.out = []  # of stdout
        self._ended = 0
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(self.popen.stderr, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self.popen.stdout, self.out), daemon=True)]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    @property
    def pid(self):
        return self.popen.pid

    def wait_until_served(self, endpoint_file, loaded=True):
        """The endpoint of this `phalanx serve`, once it listens and, with `loaded`, serves. What
        does not come to that is stopped."""
        try:
            self.wait_for_line("listening on")
            endpoint = endpoint_file.read_text().strip()
            if loaded:
                self.wait_for_line('serving "')
            return endpoint
        except BaseException:
            self.stop()
            raise

    def wait_for_line(self, pattern, timeout=DEADLINE):
        """The match of the first stderr line that holds the pattern, which may lie in the past."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    match = re.search(pattern, line)
                    if match:
                        return match
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or self._ended == 2:
                    raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.lines))
                self._changed.wait(left)

    def wait_for_lines(self, count, timeout=DEADLINE):
        """Until stderr has so many lines, or has ended."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.lines) >= count or self._ended == 2,
                                          timeout):
                raise AssertionError(f"no {count} lines:\n" + "\n".join(self.lines))

    def wait(self, timeout=DEADLINE):
        """The exit code; all output has been read."""
        code = self.popen.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def signal(self, number):
        self.popen.send_signal(number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends it where it still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for reader in self._readers:
            reader.join(5)
        self.popen.stdout.close()
        self.popen.stderr.close()


class Server(Process):
    """`phalanx serve` on a free port. `wait=False`: returns before the model is loaded."""

    def __init__(self, *arguments, model=DEMO_MODEL, wait=True):
        self.endpoint_file = scratch() / "endpoint"
        super().__init__([binary(), "serve", "--model", str(model), "--listen", "127.0.0.1:0",
                          "--endpoint-file", str(self.endpoint_file), *arguments])
        self.endpoint = self.wait_until_served(self.endpoint_file, wait)

    def rank_pids(self):
        """The pids in the log's lines "rank R of N: host H, pid P, …", in the order of ranks."""
        found = [re.search(r"rank (\d+) of \d+: host \S+, pid (\d+)", line) for line in self.lines]
        return [int(m.group(2)) for m in sorted((m for m in found if m), key=lambda m: m.group(1))]

    def command_for_ranks(self):
        """Of a server with external workers: the command that its log shows, as a list, and the
        environment to run it in."""
        line = self.wait_for_line(r"^\s+(PHALANX\S+=\S+) (\S*mpirun .*)$")
        variable, value = line.group(1).split("=", 1)
        command = shlex.split(line.group(2))
        assert value not in command, "the token belongs into the environment"
        return command, {**os.environ, variable: value}


class Stubs:
    """Modules that protoc makes of the public .proto and of the two standard services."""

    def __init__(self):
        out = scratch()
        sources = out / "sources"
        sources.mkdir()
        # Not in grpc/health/v1: in Python, grpc is the name of the library's own package.
        (sources / "health.proto").write_text(_HEALTH_PROTO)
        (sources / "reflection.proto").write_text(_REFLECTION_PROTO)
        plugin = subprocess.run(["which", "grpc_python_plugin"], capture_output=True, text=True,
                                check=True).stdout.strip()
        subprocess.run(
            ["protoc", f"--proto_path={ROOT / 'proto'}", f"--proto_path={sources}",
             f"--plugin=protoc-gen-grpc_python={plugin}", f"--python_out={out}",
             f"--grpc_python_out={out}", "phalanx/v1/inference.proto", "health.proto",
             "reflection.proto"], check=True)
        self.path = str(out)
        sys.path.insert(0, self.path)
        self.pb = importlib.import_module("phalanx.v1.inference_pb2")
        self.pb_grpc = importlib.import_module("phalanx.v1.inference_pb2_grpc")
        self.health = importlib.import_module("health_pb2")
        self.health_grpc = importlib.import_module("health_pb2_grpc")
        self.reflection = importlib.import_module("reflection_pb2")
        self.reflection_grpc = importlib.import_module("reflection_pb2_grpc")


_stubs = None


def stubs():
    global _stubs
    if _stubs is None:
        _stubs = Stubs()
    return _stubs


class Client:
    """A client as anyone would write it from the .proto."""

    def __init__(self, endpoint):
        self.stubs = stubs()
        self.pb = self.stubs.pb
        self.channel = grpc.insecure_channel(
            endpoint, options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1),
                               ("grpc.max_send_message_length", -1)])
        grpc.channel_ready_future(self.channel).result(timeout=DEADLINE)
        self.stub = self.stubs.pb_grpc.InferenceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def request(self, text="Once upon a time", **sampling):
        sampling.setdefault("max_tokens", 8)
        return self.pb.GenerateRequest(text=text, sampling=self.pb.SamplingParams(**sampling))

    def generate(self, request):
        """Checks the order of a stream and returns it taken apart."""
        result = {"text": {}, "ids": {}, "logprobs": {}, "finished": {}, "prompt_logprobs": [],
                  "deltas": 0}
        stage = "start"
        for response in self.stub.Generate(request, timeout=DEADLINE):
            event = response.WhichOneof("event")
            message = getattr(response, event)
            if event == "started":
                assert stage == "start", f"started after {stage}"
                result["started"] = message
                stage = "started"
                continue
            assert stage in ("started", "samples"), f"{event} after {stage}"
            if event == "prompt_logprobs":
                assert stage == "started", "prompt_logprobs after deltas"
                assert message.start == len(result["prompt_logprobs"]) + 1
                result["prompt_logprobs"].extend(message.tokens)
            elif event == "delta":
                stage = "samples"
                assert message.index not in result["finished"], "a delta after finished"
                result["deltas"] += 1
                result["text"].setdefault(message.index, []).append(message.text)
                result["ids"].setdefault(message.index, []).extend(message.token_ids)
                result["logprobs"].setdefault(message.index, []).extend(message.logprobs)
            elif event == "finished":
                stage = "samples"
                assert message.index not in result["finished"], "finished twice"
                result["finished"][message.index] = message
            elif event == "summary":
                result["summary"] = message
                stage = "summary"
        assert stage == "summary", f"the stream ended after {stage}"
        result["text"] = {i: "".join(parts) for i, parts in result["text"].items()}
        return result

    def status_of(self, request, **options):
        """The status code and message with which a Generate call ends."""
        try:
            for _ in self.stub.Generate(request, timeout=DEADLINE, **options):
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def begin(self, request):
        """The stream of a request, read up to its first token."""
        stream = self.stub.Generate(request, timeout=DEADLINE)
        for response in stream:
            if response.WhichOneof("event") == "delta":
                return stream
        raise AssertionError("the stream ended before its first token")

    def check_standard_services(self):
        """Health and reflection, as any gRPC tool uses them."""
        for service in ("", "phalanx.v1.Inference"):
            assert self.health(service) == "SERVING", service
        names = self.services()
        for name in ("phalanx.v1.Inference", "grpc.health.v1.Health"):
            assert name in names, f"{name} is not among {names}"

    def health(self, service=""):
        """"SERVING", "NOT_SERVING", …"""
        health = self.stubs.health
        answer = self.stubs.health_grpc.HealthStub(self.channel).Check(
            health.HealthCheckRequest(service=service), timeout=DEADLINE)
        return health.HealthCheckResponse.ServingStatus.Name(answer.status)

    def services(self):
        """The names of the services that reflection lists."""
        request = self.stubs.reflection.ServerReflectionRequest(list_services="*")
        answers = self.stubs.reflection_grpc.ServerReflectionStub(
            self.channel).ServerReflectionInfo(iter([request]), timeout=DEADLINE)
        return [s.name for s in next(answers).list_services_response.service]

    def status(self):
        return self.stub.GetStatus(self.pb.GetStatusRequest(), timeout=DEADLINE)

    def wait_for_status(self, condition, timeout=DEADLINE):
        """Asks for the status until the condition holds for it; it is returned."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout} s the status still is:\n{status}")


class ServedTestCase(unittest.TestCase):
    """Tests of one server, `self.server`, by one client, `self.client`."""

    ARGUMENTS = ("--layout", "tp=2", "--threads", "1")

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.ARGUMENTS)
        cls.addClassCleanup(cls.server.stop)
        cls.client = Client(cls.server.endpoint)
        cls.addClassCleanup(cls.client.channel.close)

    def assert_fails_with(self, code, call, *fragments):
        """`call` ends with this status, and its message holds the fragments."""
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        details = caught.exception.details()
        self.assertEqual(caught.exception.code(), code, details)
        self.assertLess(len(details), 600)
        for fragment in fragments:
            self.assertIn(fragment, details)
        print(f"  {code.name} {details[:200]}")
        return details


TERM, KILL = signal.SIGTERM, signal.SIGKILL
