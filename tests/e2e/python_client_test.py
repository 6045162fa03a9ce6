#!/usr/bin/env python3
"""A client in another language, written from proto/phalanx/v1/inference.proto alone, goes through
the whole public API.

    python_client_test.py [--phalanx PATH] [unittest's arguments]
"""

import harness


class PythonClient(harness.ServedTestCase):
    def test_health_and_reflection(self):
        self.client.check_standard_services()

    def test_model_and_status(self):
        client = self.client
        model = client.stub.GetModel(client.pb.GetModelRequest(), timeout=30)
        assert model.name and model.context_length > 0 and model.vocab_size > 0
        by_name = client.stub.GetModel(client.pb.GetModelRequest(model=model.name), timeout=30)
        assert by_name == model
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

    def test_tokenize(self):
        client = self.client
        ids = client.stub.Tokenize(
            client.pb.TokenizeRequest(text="Once upon a time", add_special_tokens=False),
            timeout=30).token_ids
        assert ids
        text = client.stub.Detokenize(client.pb.DetokenizeRequest(token_ids=ids), timeout=30).text
        assert text.strip() == "Once upon a time", text

    def test_greedy_stream(self):
        client = self.client
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

    def test_sampling(self):
        client = self.client
        drawn = client.generate(client.request(temperature=1.0, n=3, ignore_eos=True))
        assert sorted(drawn["finished"]) == [0, 1, 2]
        for index, finished in drawn["finished"].items():
            assert finished.finish_reason == client.pb.FINISH_REASON_LENGTH
            assert finished.num_tokens == len(drawn["ids"][index]) == 8
        # The same again from the ids and the seed that were returned.
        request = client.request(temperature=1.0, n=3, ignore_eos=True, seed=drawn["started"].seed)
        request.token_ids.ids.extend(drawn["started"].prompt_token_ids)
        assert client.generate(request)["ids"] == drawn["ids"]

    def test_stop(self):
        client = self.client
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
            client.request(temperature=0.0, ignore_eos=True, max_tokens=16,
                           stop_token_ids=[stop_id]))
        assert cut["ids"][0] == whole["ids"][0][:whole["ids"][0].index(stop_id) + 1]
        assert cut["finished"][0].stop_token_id == stop_id


if __name__ == "__main__":
    harness.main()
