"""A client in another language, written from proto/phalanx/v1/inference.proto alone.

Checks a running server; prints one line per check. Needs grpcio and grpcio-tools, which make the
stubs in a temporary directory.

    python_client_test.py --endpoint HOST:PORT --proto DIR

Exit code 0: all checks passed; 1: one failed (named on stderr); 77: grpcio-tools is not installed.
"""

import argparse
import importlib
import os
import sys
import tempfile
import threading
import traceback

try:
    import grpc
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc
except ImportError as error:
    print(f"skipped: {error}", file=sys.stderr)
    sys.exit(77)


def compile_stubs(proto_dir, out_dir):
    """Generates and imports the modules of inference.proto."""
    source = os.path.join(proto_dir, "phalanx", "v1", "inference.proto")
    status = protoc.main(
        ["protoc", f"--proto_path={proto_dir}", f"--python_out={out_dir}",
         f"--grpc_python_out={out_dir}", source])
    if status != 0:
        raise RuntimeError(f"protoc failed on {source}")
    sys.path.insert(0, out_dir)
    return (importlib.import_module("phalanx.v1.inference_pb2"),
            importlib.import_module("phalanx.v1.inference_pb2_grpc"))


def small_messages():
    """Messages of grpc.health.v1 and grpc.reflection.v1alpha, as far as they are used here."""
    file = descriptor_pb2.FileDescriptorProto(name="small.proto", package="small", syntax="proto3")

    def add(message, name, number, kind, repeated=False, type_name=None):
        message.field.add(name=name, number=number, type=kind, type_name=type_name,
                          label=3 if repeated else 1)

    string, enum_as_int, nested = 9, 5, 11
    health = file.message_type.add(name="HealthCheckRequest")
    add(health, "service", 1, string)
    health = file.message_type.add(name="HealthCheckResponse")
    add(health, "status", 1, enum_as_int)
    request = file.message_type.add(name="ReflectionRequest")
    add(request, "list_services", 7, string)
    service = file.message_type.add(name="ServiceResponse")
    add(service, "name", 1, string)
    listing = file.message_type.add(name="ListServiceResponse")
    add(listing, "service", 1, nested, True, ".small.ServiceResponse")
    response = file.message_type.add(name="ReflectionResponse")
    add(response, "list_services_response", 6, nested, False, ".small.ListServiceResponse")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"small.{name}"))
            for name in ("HealthCheckRequest", "HealthCheckResponse", "ReflectionRequest",
                         "ReflectionResponse")}


class Client:
    def __init__(self, endpoint, pb, pb_grpc):
        self.pb = pb
        self.channel = grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)])
        grpc.channel_ready_future(self.channel).result(timeout=60)
        self.stub = pb_grpc.InferenceStub(self.channel)

    def request(self, text="Once upon a time", **sampling):
        sampling.setdefault("max_tokens", 8)
        return self.pb.GenerateRequest(text=text, sampling=self.pb.SamplingParams(**sampling))

    def generate(self, request):
        """Checks the order of a stream and returns it taken apart."""
        result = {"text": {}, "ids": {}, "logprobs": {}, "finished": {}, "prompt_logprobs": []}
        stage = "start"
        for response in self.stub.Generate(request, timeout=300):
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
        """The status with which a Generate call ends."""
        try:
            for _ in self.stub.Generate(request, timeout=300, **options):
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""


def check_health(client, small):
    call = client.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=small["HealthCheckRequest"].SerializeToString,
        response_deserializer=small["HealthCheckResponse"].FromString)
    for service in ("", "phalanx.v1.Inference"):
        answer = call(small["HealthCheckRequest"](service=service), timeout=30)
        assert answer.status == 1, f"health of {service!r} is {answer.status}, not SERVING"


def check_reflection(client, small):
    call = client.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=small["ReflectionRequest"].SerializeToString,
        response_deserializer=small["ReflectionResponse"].FromString)
    answers = call(iter([small["ReflectionRequest"](list_services="*")]), timeout=30)
    names = [s.name for s in next(answers).list_services_response.service]
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


def check_cancel_frees_blocks(client):
    for i in range(8):
        request = client.request(ignore_eos=True, seed=i)
        request.sampling.ClearField("max_tokens")
        stream = client.stub.Generate(request, timeout=300)
        next(stream)
        stream.cancel()
    for _ in range(3000):
        engine = client.stub.GetStatus(client.pb.GetStatusRequest(), timeout=30).engine
        if engine.running_requests == engine.queued_requests == engine.kv_blocks_in_use == 0:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"cancelled requests still hold memory: {engine}")


def check_many_clients(client):
    prompts = [f"Once there were {i} birds" for i in range(64)]
    alone = [client.generate(client.request(p, temperature=0.0, logprobs=1)) for p in prompts]
    together = [None] * len(prompts)

    def ask(i):
        together[i] = client.generate(client.request(prompts[i], temperature=0.0, logprobs=1))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, many in zip(alone, together):
        assert many is not None, "a client failed"
        assert one["ids"] == many["ids"] and one["logprobs"] == many["logprobs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True, help="HOST:PORT of a serving Phalanx")
    parser.add_argument("--proto", required=True, help="the directory that holds phalanx/v1")
    arguments = parser.parse_args()
    small = small_messages()
    with tempfile.TemporaryDirectory() as out_dir:
        pb, pb_grpc = compile_stubs(arguments.proto, out_dir)
        client = Client(arguments.endpoint, pb, pb_grpc)
        checks = [
            ("health", lambda: check_health(client, small)),
            ("reflection", lambda: check_reflection(client, small)),
            ("model and status", lambda: check_model_and_status(client)),
            ("tokenize", lambda: check_tokenize(client)),
            ("greedy stream", lambda: check_greedy_stream(client)),
            ("sampling", lambda: check_sampling(client)),
            ("stop", lambda: check_stop(client)),
            ("statuses", lambda: check_statuses(client)),
            ("deadline", lambda: check_deadline(client)),
            ("cancel frees blocks", lambda: check_cancel_frees_blocks(client)),
            ("64 clients", lambda: check_many_clients(client)),
        ]
        failed = 0
        for name, check in checks:
            try:
                check()
                print(f"ok {name}", flush=True)
            except Exception:  # every check is run; the first failure hides none
                failed += 1
                print(f"FAILED {name}", flush=True)
                print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr)
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
