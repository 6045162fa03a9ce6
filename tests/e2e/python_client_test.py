#!/usr/bin/env python3
"""A client in another language, written from proto/phalanx/v1/inference.proto alone, goes through
the whole public API.

    python_client_test.py [--phalanx PATH] [unittest's arguments]
"""

import unittest

import grpc

import harness


def check_health(client):
    for service in ("", "phalanx.v1.Inference"):
        assert client.health(service) == "SERVING", service


def check_reflection(client):
    names = client.services()
    for name in ("phalanx.v1.Inference", "grpc.health.v1.Health"):
        assert name in names, f"{name} is not among {names}"


def check_model_and_status(client):
    model = client.stub.GetModel(client.pb.GetModelRequest(), timeout=30)
    assert model.name and model.context_length > 0 and model.vocab_size > 0
    assert client.stub.GetModel(client.pb.GetModelRequest(model=model.name), timeout=30) == model
    status = client.stub.GetStatus(client.pb.GetStatusRequest(), timeout=30)
    assert status.state == client.pb.SERVER_STATE_SERVING
    assert status.model == model.name
    assert len(status.ranks) >= 1
    assert [r.rank for r in status.ranks] == list(range(len(status.ranks)))
    for rank in status.ranks:
        print(f"  rank {rank.rank}: host {rank.host}, pid {rank.pid}, {rank.device}")
    engine = status.engine
    assert engine.kv_blocks_total == (
        engine.kv_blocks_free + engine.kv_blocks_in_use + engine.kv_blocks_cached)


def check_tokenize(client):
    ids = client.stub.Tokenize(
        client.pb.TokenizeRequest(text="Once upon a time", add_special_tokens=False),
        timeout=30).token_ids
    assert ids
    text = client.stub.Detokenize(client.pb.DetokenizeRequest(token_ids=ids), timeout=30).text
    assert text.strip() == "Once upon a time", text


def check_greedy_stream(client):
    first = client.generate(client.request(temperature=0.0, logprobs=3, prompt_logprobs=1))
    assert 1 <= len(first["ids"][0]) <= 8
    assert len(first["logprobs"][0]) == len(first["ids"][0])
    for token, token_id in zip(first["logprobs"][0], first["ids"][0]):
        assert token.id == token_id and len(token.top) == 3
        assert token.top[0].id == token_id and token.top[0].logprob == token.logprob
        assert [t.logprob for t in token.top] == sorted(
            (t.logprob for t in token.top), reverse=True)
    prompt = first["started"].prompt_token_ids
    assert [t.id for t in first["prompt_logprobs"]] == list(prompt[1:])
    usage = first["summary"].usage
    assert usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == len(first["ids"][0])
    again = client.generate(client.request(temperature=0.0, logprobs=3))
    assert again["ids"] == first["ids"] and again["text"] == first["text"]
    assert again["logprobs"] == first["logprobs"], "logprobs differ from one run to the next"


def check_sampling(client):
    drawn = client.generate(client.request(temperature=1.0, n=3, ignore_eos=True))
    assert sorted(drawn["finished"]) == [0, 1, 2]
    for index, finished in drawn["finished"].items():
        assert finished.finish_reason == client.pb.FINISH_REASON_LENGTH
        assert finished.num_tokens == len(drawn["ids"][index]) == 8
    # The same again from the ids and the seed that were returned.
    request = client.request(temperature=1.0, n=3, ignore_eos=True, seed=drawn["started"].seed)
    request.token_ids.ids.extend(drawn["started"].prompt_token_ids)
    assert client.generate(request)["ids"] == drawn["ids"]


def check_stop(client):
    whole = client.generate(client.request(temperature=0.0, ignore_eos=True, max_tokens=16))
    text = whole["text"][0]
    stop = text[len(text) // 2:len(text) // 2 + 3]
    cut = client.generate(
        client.request(temperature=0.0, ignore_eos=True, max_tokens=16, stop=[stop]))
    assert cut["text"][0] == text[:text.index(stop)]
    assert cut["finished"][0].finish_reason == client.pb.FINISH_REASON_STOP
    assert cut["finished"][0].stop_string == stop
    stop_id = whole["ids"][0][3]
    cut = client.generate(
        client.request(temperature=0.0, ignore_eos=True, max_tokens=16, stop_token_ids=[stop_id]))
    assert cut["ids"][0] == whole["ids"][0][:whole["ids"][0].index(stop_id) + 1]
    assert cut["finished"][0].stop_token_id == stop_id


def check_statuses(client):
    code = grpc.StatusCode
    model = client.stub.GetModel(client.pb.GetModelRequest(), timeout=30)
    bad = [
        ("sampling.temperature", client.request(temperature=float("nan"))),
        ("sampling.top_p", client.request(top_p=0.0)),
        ("sampling.max_tokens", client.request(max_tokens=-1)),
        ("sampling.max_tokens", client.request(max_tokens=2**31)),
        ("sampling.n", client.request(n=0)),
        ("sampling.logprobs", client.request(logprobs=-1)),
        ("text", client.request(text="")),
        ("prompt", client.pb.GenerateRequest()),
        ("token_ids", client.pb.GenerateRequest(
            token_ids=client.pb.TokenIds(ids=[model.vocab_size]))),
        ("token_ids", client.pb.GenerateRequest(
            token_ids=client.pb.TokenIds(ids=[1] * model.context_length))),
        ("text", client.request(text="a" * 100_000_000)),
    ]
    for field, request in bad:
        got, details = client.status_of(request)
        assert got == code.INVALID_ARGUMENT, f"{field}: {got} {details}"
        assert details.startswith(f"{field}:"), f"{field}: {details}"
    # Protobuf for Python refuses to build text that is not UTF-8: send the bytes of field 3.
    raw = client.channel.unary_stream("/phalanx.v1.Inference/Generate")
    try:
        list(raw(b"\x1a\x02\xc3(", timeout=30))
        raise AssertionError("text that is not UTF-8 was accepted")
    except grpc.RpcError as error:
        assert error.code() == code.INVALID_ARGUMENT, error
        assert error.details().startswith("text:"), error.details()
    other = client.request()
    other.model = "no such model"
    assert client.status_of(other)[0] == code.NOT_FOUND
    long = client.request(ignore_eos=True)
    long.sampling.ClearField("max_tokens")
    long.request_id = "twin"
    stream = client.stub.Generate(long, timeout=300)
    next(stream)
    # Where the model is fast and its context short, the first may be done already.
    assert client.status_of(long)[0] in (code.ALREADY_EXISTS, code.OK)
    stream.cancel()


def check_deadline(client):
    request = client.request(ignore_eos=True, n=8)
    request.sampling.ClearField("max_tokens")
    try:
        for _ in client.stub.Generate(request, timeout=0.001):
            pass
        raise AssertionError("a deadline of 1 ms did not end the call")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


class PythonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server("--layout", "tp=2", "--threads", "1")
        cls.addClassCleanup(cls.server.stop)
        cls.client = harness.Client(cls.server.endpoint)
        cls.addClassCleanup(cls.client.channel.close)

    def test_health(self):
        check_health(self.client)

    def test_reflection(self):
        check_reflection(self.client)

    def test_model_and_status(self):
        check_model_and_status(self.client)

    def test_tokenize(self):
        check_tokenize(self.client)

    def test_greedy_stream(self):
        check_greedy_stream(self.client)

    def test_sampling(self):
        check_sampling(self.client)

    def test_stop(self):
        check_stop(self.client)

    def test_statuses(self):
        check_statuses(self.client)

    def test_deadline(self):
        check_deadline(self.client)


if __name__ == "__main__":
    harness.main()
