#!/usr/bin/env python3
"""Many clients of one server at once, and clients that go away.

    service_test.py [--phalanx PATH] [unittest's arguments]
"""

import json
import sys
import threading

import grpc

import harness

CLIENTS = 64
GSM8K = harness.SHARED / "prompts" / "gsm8k-test.jsonl"

# A client of its own process: tells when its first token is there, then reads on until killed.
ENDLESS_CLIENT = """
import sys
sys.path[:0] = sys.argv[2:]
import grpc
from phalanx.v1 import inference_pb2 as pb, inference_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
request = pb.GenerateRequest(text="Once", sampling=pb.SamplingParams(
    max_tokens=2000, n=4, temperature=1.0, ignore_eos=True))
for response in inference_pb2_grpc.InferenceStub(channel).Generate(request):
    if response.WhichOneof("event") == "delta":
        print("first token", file=sys.stderr, flush=True)
"""


def prompts():
    if not GSM8K.exists():
        print(f"  {GSM8K} is absent: made-up prompts instead")
        return [f"Question {i}: {i} birds sat in a tree and {i % 7} more came." + " Why?" * (i % 40)
                for i in range(CLIENTS)]
    with open(GSM8K, encoding="utf-8") as lines:
        return [json.loads(line)["question"] for line, _ in zip(lines, range(CLIENTS))]


class Service(harness.ServedTestCase):
    # All these prompts together do not fit into 150 blocks: some wait and some are preempted.
    ARGUMENTS = (*harness.ServedTestCase.ARGUMENTS, "--kv-blocks", "150")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.baseline = cls.client.status().engine.kv_blocks_in_use

    def wait_for_baseline(self):
        return self.client.wait_for_status(
            lambda s: (s.engine.kv_blocks_in_use == self.baseline and s.engine.running_requests == 0
                       and s.engine.queued_requests == 0 and s.engine.running_sequences == 0))

    def request(self, prompt, seed):
        sampling = {"temperature": 0.0} if seed is None else {"temperature": 0.9, "top_p": 0.95,
                                                              "seed": seed}
        return self.client.request(prompt, max_tokens=24, ignore_eos=True, logprobs=3, **sampling)

    def test_64_clients_at_once_each_get_the_answer_they_get_alone(self):
        requests = [self.request(prompt, None if i % 2 == 0 else i)
                    for i, prompt in enumerate(prompts())]
        # Requests that reuse a prefix are one more thing that must change nothing.
        alone = [self.client.generate(request) for request in requests]
        together = [None] * len(requests)
        barrier = threading.Barrier(len(requests))

        def ask(i):
            with harness.Client(self.server.endpoint) as client:
                barrier.wait(harness.DEADLINE)
                together[i] = client.generate(requests[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.DEADLINE)
        for i, (one, many) in enumerate(zip(alone, together)):
            self.assertIsNotNone(many, f"client {i} failed")
            self.assertEqual(len(one["ids"][0]), 24)
            self.assertEqual(one["ids"], many["ids"], f"client {i}")
            self.assertEqual(one["logprobs"], many["logprobs"], f"client {i}")
            self.assertEqual(one["text"], many["text"], f"client {i}")
        engine = self.wait_for_baseline().engine
        self.assertGreater(engine.preemptions, 0, "no request was preempted: give it fewer blocks")
        print(f"  {len(requests)} clients, {engine.steps} steps, "
              f"{engine.preemptions} preemptions, {engine.cached_prompt_tokens} cached tokens")

    def test_cancelled_streams_free_their_blocks(self):
        for i in range(16):
            stream = self.client.begin(self.client.request(
                "Once", max_tokens=2000, n=4, temperature=1.0, seed=i, ignore_eos=True))
            self.assertGreater(self.client.status().engine.kv_blocks_in_use, self.baseline)
            stream.cancel()
        self.wait_for_baseline()

    def test_killed_client_processes_free_their_blocks(self):
        clients = [harness.Process([sys.executable, "-c", ENDLESS_CLIENT, self.server.endpoint,
                                    harness.stubs().path]) for _ in range(4)]
        for client in clients:
            self.addCleanup(client.stop)
        for client in clients:
            client.wait_for_line("first token")
            client.signal(harness.KILL)
        for client in clients:
            self.assertEqual(client.wait(), -harness.KILL)
        self.wait_for_baseline()
        answer = self.client.generate(self.client.request(temperature=0.0))
        self.assertEqual(len(answer["finished"]), 1)

    def test_a_deadline_frees_its_blocks(self):
        request = self.client.request("Once", max_tokens=2000, n=8, temperature=1.0,
                                      ignore_eos=True)
        for seconds in (0.001, 0.2):
            self.assert_fails_with(grpc.StatusCode.DEADLINE_EXCEEDED,
                                   lambda: list(self.client.stub.Generate(request,
                                                                          timeout=seconds)))
        self.wait_for_baseline()

    def test_a_full_queue_refuses_and_goes_on(self):
        with harness.Server("--workers", "threads", "--threads", "1", "--max-queue", "1",
                            "--max-sequences", "1") as server, \
                harness.Client(server.endpoint) as client:
            endless = client.request("Once", max_tokens=2000, ignore_eos=True)
            first = client.begin(endless)
            second = client.stub.Generate(endless, timeout=harness.DEADLINE)
            client.wait_for_status(lambda s: s.engine.queued_requests == 1)
            code, details = client.status_of(endless)
            self.assertEqual(code, grpc.StatusCode.RESOURCE_EXHAUSTED, details)
            print(f"  {details}")
            first.cancel()
            second.cancel()
            client.wait_for_status(lambda s: s.engine.kv_blocks_in_use == 0)
            self.assertEqual(client.status_of(client.request())[0], grpc.StatusCode.OK)


if __name__ == "__main__":
    harness.main()
