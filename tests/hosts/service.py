"""`phalanx serve` on a host, its client outside, and streams that are compared with those of one
rank."""

import pathlib
import re
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import grpc  # noqa: E402
import harness  # noqa: E402
import hosts as hosts_module  # noqa: E402

PROMPTS = ["Once upon a time", "Number 2: the cat", "Lily had a red ball and", "The sun was warm"]


def skip_where_unavailable():
    reason = hosts_module.unavailable()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)


def make_hosts(names):
    return hosts_module.Hosts(names, shared=[harness.ROOT, pathlib.Path(harness.binary()).parent])


class Served:
    """serve on host `on`, reached from outside."""

    def __init__(self, hosts, on, arguments):
        self.hosts = hosts
        self.on = on
        host = hosts.hosts[on]
        self.endpoint_file = hosts.directory / "endpoint"
        command = [harness.binary(), "serve", "--model", str(harness.DEMO_MODEL), "--listen",
                   f"{host.address}:0", "--endpoint-file", str(self.endpoint_file),
                   "--mpirun-arg=--mca", "--mpirun-arg=plm_rsh_agent",
                   f"--mpirun-arg={hosts.agent}", "--threads", "1", "--kv-memory", "16MiB",
                   *arguments]
        self.process = harness.Process(hosts.inside(on, command))
        try:
            self.process.wait_for_line("listening on")
            self.endpoint = self.endpoint_file.read_text().strip()
            self.process.wait_for_line('serving "')
        except BaseException:
            self.stop()
            raise
        self.client = harness.Client(self.endpoint)

    def ranks(self):
        """{(replica, rank): (host, pid there)} of the first groups, from the log."""
        out = {}
        for line in self.process.lines:
            match = re.search(r"(?:replica (\d+), )?rank (\d+) of \d+: host (\S+), pid (\d+)", line)
            if match:
                out[int(match.group(1) or 0), int(match.group(2))] = (match.group(3),
                                                                      int(match.group(4)))
        return out

    def pid(self):
        """serve's own, as the test sees it."""
        return next(p for p, line in self.hosts.pids(self.on).items()
                    if line.startswith(f"{harness.binary()} serve"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.hosts.hosts[self.on].alive():
            # nsenter's own death would leave serve alone.
            for pid, line in self.hosts.pids(self.on).items():
                if line.startswith(f"{harness.binary()} serve"):
                    hosts_module.kill(pid)
        self.process.stop()


def requests(client, count, tokens):
    """Greedy and seeded requests in turn, with logprobs."""
    out = []
    for i in range(count):
        sampling = {"max_tokens": tokens, "ignore_eos": True, "logprobs": 2}
        if i % 2:
            sampling.update(temperature=0.9, seed=100 + i, top_p=0.95)
        else:
            sampling.update(temperature=0.0)
        out.append(client.request(PROMPTS[i % len(PROMPTS)], **sampling))
    return out


def words(result):
    """What must be equal: ids and the exact bits of logprobs."""
    return (result["ids"], result["text"],
            {i: [t.SerializeToString() for t in tokens]
             for i, tokens in result["logprobs"].items()})


def expected(count, tokens):
    """The streams of one rank, undisturbed."""
    server = harness.Server("--layout", "tp=1", "--threads", "1", "--kv-memory", "16MiB")
    try:
        with harness.Client(server.endpoint) as client:
            return [words(client.generate(r)) for r in requests(client, count, tokens)]
    finally:
        server.stop()


class Streams:
    """Requests that run at the same time, each read by a thread."""

    def __init__(self, client, count, tokens):
        self.results = [None] * count
        self.errors = [None] * count
        self.tokens = 0
        self._changed = threading.Condition()
        self._client = client
        self._threads = [threading.Thread(target=self._run, args=(i, r), daemon=True)
                         for i, r in enumerate(requests(client, count, tokens))]
        for thread in self._threads:
            thread.start()

    def _run(self, i, request):
        stub = self._client.stub
        outer = self

        class Counting:
            pb = self._client.pb

            class stub:  # noqa: N801
                @staticmethod
                def Generate(request, timeout):
                    for response in stub.Generate(request, timeout=4 * timeout):
                        if response.WhichOneof("event") == "delta":
                            with outer._changed:
                                outer.tokens += len(response.delta.token_ids)
                                outer._changed.notify_all()
                        yield response

        try:
            self.results[i] = words(harness.Client.generate(Counting, request))
        except (grpc.RpcError, AssertionError) as error:
            self.errors[i] = error

    def wait_for_tokens(self, count, timeout=harness.DEADLINE):
        deadline = time.monotonic() + timeout
        with self._changed:
            while self.tokens < count:
                left = deadline - time.monotonic()
                if left <= 0 or not any(t.is_alive() for t in self._threads):
                    raise AssertionError(f"{self.tokens} of {count} tokens after {timeout} s: "
                                         f"{self.errors}")
                self._changed.wait(min(left, 1))

    def join(self, timeout=2 * harness.DEADLINE):
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        assert not any(t.is_alive() for t in self._threads), "a stream hangs"
        assert self.errors == [None] * len(self.errors), self.errors
        return self.results
