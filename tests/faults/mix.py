"""Requests of every kind that a stream can break at, from a seed, and what a client saw of them."""

import dataclasses
import random
import threading
import time

import grpc

import harness
from checker import Event, History, Token, bits

KINDS = ("greedy", "seeded", "penalties", "stop", "samples", "long", "cancelled", "eos", "biased")
STARTS = ("Once upon a time", "One day", "There was a little cat", "Lily had a red ball and",
          "The sun was warm", "Tom and his mom went to the park", "A bird sat on the tree")
VOCABULARY = 1024  # of the demo model's tokenizer
# A stream that is longer under way than this is lost.
LONGEST = 180


@dataclasses.dataclass
class Request:
    name: str
    message: object  # GenerateRequest
    cancel_after: int = 0  # messages; 0: never

    def key(self):
        """Equal keys, equal answers."""
        return self.message.SerializeToString(deterministic=True)


def make(kind, name, random_, tokens=48, prompt_tokens=300):
    """A request of the kind. `tokens` is about the length of its answer."""
    pb = harness.stubs().pb
    sampling = {"max_tokens": tokens + random_.randrange(tokens // 2 + 1), "ignore_eos": True,
                "seed": random_.randrange(1 << 48)}
    text = f"{random_.choice(STARTS)} {random_.randrange(1000)}"
    ids, cancel_after = None, 0
    if kind == "greedy":
        sampling.update(temperature=0.0, logprobs=5)
        del sampling["seed"]
    elif kind == "seeded":
        sampling.update(temperature=0.9, top_p=0.95, logprobs=0)
    elif kind == "penalties":
        sampling.update(temperature=0.8, logprobs=5, repetition_penalty=1.2, frequency_penalty=0.4,
                        presence_penalty=0.3)
    elif kind == "stop":
        # Long enough to be held back over several tokens; some answers end by it, some don't.
        sampling.update(temperature=1.0, logprobs=2, min_tokens=random_.randrange(tokens // 2),
                        max_tokens=2 * tokens,
                        stop=[random_.choice((". He ", " wanted to ", " said", " in the ",
                                              "ed to")), " never to be found"])
    elif kind == "samples":
        sampling.update(temperature=1.0, n=3, logprobs=1,
                        max_tokens=max(1, sampling["max_tokens"] // 2))
    elif kind == "long":
        ids = [random_.randrange(3, VOCABULARY) for _ in range(prompt_tokens)]
        sampling.update(temperature=0.7, logprobs=3, prompt_logprobs=2,
                        max_tokens=max(1, sampling["max_tokens"] // 2))
    elif kind == "cancelled":
        sampling.update(temperature=0.9, logprobs=1, max_tokens=8 * tokens)
        cancel_after = 3 + random_.randrange(tokens)
    elif kind == "eos":
        sampling.update(temperature=0.0 if random_.random() < 0.5 else 0.8, ignore_eos=False,
                        min_tokens=tokens // 2, max_tokens=3 * tokens, logit_bias={1: 4.0})
    elif kind == "biased":
        sampling.update(temperature=1.2, top_k=20, min_p=0.01, logprobs=5, prompt_logprobs=1,
                        logit_bias={random_.randrange(3, VOCABULARY): 4.0 for _ in range(3)},
                        stop_token_ids=[random_.randrange(3, VOCABULARY)])
    else:
        raise ValueError(f"no such kind of request: {kind}")
    message = pb.GenerateRequest(sampling=pb.SamplingParams(**sampling), request_id=name)
    if ids is None:
        message.text = text
    else:
        message.token_ids.ids.extend(ids)
    return Request(f"{name} ({kind})", message, cancel_after)


def _tokens(messages):
    return tuple(Token(t.id, bits(t.logprob), tuple((r.id, bits(r.logprob)) for r in t.top))
                 for t in messages)


def _event(response):
    kind = response.WhichOneof("event")
    message = getattr(response, kind)
    event = Event(kind, time.monotonic())
    if kind == "started":
        event.ids, event.value = tuple(message.prompt_token_ids), (message.seed,)
    elif kind == "prompt_logprobs":
        event.index, event.tokens = message.start, _tokens(message.tokens)
    elif kind == "delta":
        event.index, event.text = message.index, message.text
        event.ids, event.tokens = tuple(message.token_ids), _tokens(message.logprobs)
    elif kind == "finished":
        event.index = message.index
        event.value = (message.finish_reason, message.stop_token_id, message.stop_string,
                       message.num_tokens)
    elif kind == "summary":
        event.value = (message.usage.prompt_tokens, message.usage.completion_tokens)
    return event


class Stream:
    """One request on its way; its history grows while it runs."""

    def __init__(self, stub, request, longest=LONGEST):
        self.request = request
        sampling = request.message.sampling
        self.history = History(request.name, sampling.HasField("logprobs"),
                               sampling.n if sampling.HasField("n") else 1)
        self.begun = time.monotonic()
        self._stub, self._longest = stub, longest
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _add(self, event):
        with self._changed:
            self.history.events.append(event)
            self._changed.notify_all()

    def _run(self):
        deltas, details = 0, ""
        call = self._stub.Generate(self.request.message, timeout=self._longest)
        try:
            for response in call:
                event = _event(response)
                self._add(event)
                deltas += event.kind == "delta"
                if self.request.cancel_after and deltas == self.request.cancel_after:
                    self.history.cancelled = True
                    call.cancel()
            code = call.code()
            details = call.details()
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        self._add(Event("status", time.monotonic(), value=(code.name, details or "")))

    def wait_for(self, condition, timeout=harness.DEADLINE):
        """Until the condition holds for the history, which grows; it must hold at its end."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition(self.history):
                left = deadline - time.monotonic()
                if left <= 0 or self.history.status() is not None:
                    raise AssertionError(f"{self.history.name}: waited for what did not come; "
                                         f"{len(self.history.events)} messages, status "
                                         f"{self.history.of('status')}")
                self._changed.wait(left)

    def join(self):
        """Its history, complete."""
        self._thread.join(self._longest + 30)
        if self._thread.is_alive():
            raise AssertionError(f"{self.history.name}: the call does not end")
        return self.history


class References:
    """Undisturbed runs: one rank, no faults, each request alone. The seed that the disturbed server
    drew is used where the request has none."""

    def __init__(self, start):
        self._start, self._server, self._client, self._known = start, None, None, {}

    def of(self, request, history):
        pb = harness.stubs().pb
        message = pb.GenerateRequest()
        message.CopyFrom(request.message)
        message.request_id = ""
        started = history.of("started")
        if started and not message.sampling.HasField("seed"):
            message.sampling.seed = started[0].value[0]
        undisturbed = Request(request.name, message)
        key = undisturbed.key()
        if key not in self._known:
            if self._server is not None and self._server.popen.poll() is not None:
                print(f"  the server of undisturbed runs has ended with code "
                      f"{self._server.popen.returncode} and is started anew; its last lines: " +
                      " | ".join(self._server.lines[-8:]), flush=True)
                self.close()
            if self._server is None:
                self._server = self._start()
                self._client = harness.Client(self._server.endpoint)
            self._known[key] = Stream(self._client.stub, undisturbed).join()
        return self._known[key]

    def close(self):
        if self._server is not None:
            self._client.channel.close()
            self._server.stop()
            self._server = None


def requests(seed, count, prefix, kinds=KINDS, tokens=48, prompt_tokens=300):
    """`count` requests; of every kind as many, in an order from the seed."""
    random_ = random.Random(seed)
    order = []
    while len(order) < count:
        more = list(kinds)
        random_.shuffle(more)
        order.extend(more)
    return [make(kind, f"{prefix}-{i}", random_, tokens, prompt_tokens)
            for i, kind in enumerate(order[:count])]
