"""Trains the demo model: python train.py --work DIR [--out DIR].

Makes its own text (stories.py), trains a byte-level BPE tokenizer and a small Llama on it, and
writes a Hugging Face checkpoint in BF16 to --out. State is saved to --work every --save-every
steps; a run that is started again with the same --work continues.

Needs torch, transformers, tokenizers and safetensors. Everything is drawn from --seed.
"""

import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import stories

BOS, EOS = "<|begin_of_story|>", "<|end_of_story|>"
BOS_ID, EOS_ID = 0, 1
VOCAB_SIZE = 1024
# (step, share of the full learning rate); linear between. The last step ends the run.
SCHEDULE = ((0, 0.02), (49, 1.0), (2280, 1.0), (2600, 1200 / 1520), (2840, 0.0))
LONG_FROM = 2720  # From this step on, rows are LONG_ROW tokens instead of SHORT_ROW.
SHORT_ROW, LONG_ROW = 192, 384
TOKENS_PER_STEP = 16 * SHORT_ROW


def make_config():
    return LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=320, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, head_dim=16, max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.05,
        attn_implementation="sdpa")


def train_tokenizer(seed, out):
    """Trains the tokenizer on 20,000 stories and writes tokenizer.json to `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(stories.stories(seed, 20000), trainer)
    assert tokenizer.token_to_id(BOS) == BOS_ID and tokenizer.token_to_id(EOS) == EOS_ID
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, BOS_ID)])
    tokenizer.save(os.path.join(out, "tokenizer.json"))


class Rows:
    """An endless stream of token rows: each starts at a story's start and packs whole stories.

    Only the last story of a row is cut. State is the generator's, so a run can be resumed.
    """

    def __init__(self, tokenizer, seed):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed + 1)

    def row(self, length):
        ids = []
        while len(ids) <= length:
            ids += self.tokenizer.encode(stories.story(self.rng)).ids + [EOS_ID]
        return ids[: length + 1]

    def batch(self, length):
        rows = [self.row(length) for _ in range(TOKENS_PER_STEP // length)]
        rows = torch.tensor(rows)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


class Muon:
    """Momentum whose update is orthogonalised by Newton-Schulz (Jordan et al., 2024).

    groups: lists of parameters of one shape [out, in]; each list is updated as one batch.
    """

    def __init__(self, groups, momentum=0.95, weight_decay=0.02):
        self.groups, self.momentum, self.weight_decay = groups, momentum, weight_decay
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in groups]

    @torch.no_grad()
    def step(self, lr):
        for params, buffer in zip(self.groups, self.buffers):
            grad = torch.stack([p.grad for p in params])
            buffer.mul_(self.momentum).add_(grad, alpha=1 - self.momentum)
            update = grad.lerp(buffer, self.momentum)
            rows, cols = update.shape[1:]
            x = update.transpose(1, 2) if rows > cols else update
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.transpose(1, 2) if rows > cols else x
            scale = lr * max(1.0, rows / cols) ** 0.5
            for p, u in zip(params, x):
                p.mul_(1 - lr * self.weight_decay).add_(u, alpha=-scale)


def export(model, config, out, dtype=torch.bfloat16):
    """Writes config.json, generation_config.json and model.safetensors as Transformers would."""
    tensors = {name: p.detach().to(dtype).contiguous() for name, p in model.named_parameters()
               if name != "lm_head.weight"}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
        "head_dim": config.head_dim, "hidden_act": "silu", "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings, "mlp_bias": False,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads, "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": config.vocab_size}
    write_json(os.path.join(out, "config.json"), values)
    write_json(os.path.join(out, "generation_config.json"),
               {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID})
    write_json(os.path.join(out, "tokenizer_config.json"),
               {"bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False,
                "model_max_length": config.max_position_embeddings,
                "tokenizer_class": "PreTrainedTokenizerFast"})


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def learning_rate(step):
    """Share of the full rate at `step`, by SCHEDULE."""
    for (a, rate_a), (b, rate_b) in zip(SCHEDULE, SCHEDULE[1:]):
        if step < b:
            return rate_a + (rate_b - rate_a) * (step - a) / (b - a)
    return 0.0


def sample(model, tokenizer, prompt, temperature, seed, limit=220):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out, past, text_ids = ids, None, []
    with torch.no_grad():
        for _ in range(limit):
            result = model(out, past_key_values=past, use_cache=True)
            past, logits = result.past_key_values, result.logits[0, -1]
            if temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1,
                                              generator=generator))
            if token == EOS_ID:
                return prompt + tokenizer.decode(text_ids) + " <end>"
            text_ids.append(token)
            out = torch.tensor([[token]])
    return prompt + tokenizer.decode(text_ids)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for the state of the run")
    parser.add_argument("--out", default=here, help="folder of the finished checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.work, exist_ok=True)

    tokenizer_path = os.path.join(args.work, "tokenizer.json")
    if not os.path.exists(tokenizer_path):
        train_tokenizer(args.seed, args.work)
    tokenizer = Tokenizer.from_file(tokenizer_path)
    rows = Rows(tokenizer, args.seed)
    config = make_config()
    model = LlamaForCausalLM(config)
    matrices = {}
    for name, p in model.named_parameters():
        if ".layers." in name and p.dim() == 2:
            matrices.setdefault(tuple(p.shape), []).append(p)
    muon = Muon(list(matrices.values()))
    others = [p for n, p in model.named_parameters() if ".layers." not in n or p.dim() == 1]
    adam = torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)

    steps = SCHEDULE[-1][0]
    step, state_path = 0, os.path.join(args.work, "state.pt")
    if os.path.exists(state_path):
        state = torch.load(state_path, weights_only=False)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.buffers = state["muon"]
        rows.rng.setstate(state["rng"])
        step = state["step"]
        print(f"continuing at step {step}", flush=True)

    def save():
        state = {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.buffers,
                 "rng": rows.rng.getstate(), "step": step}
        torch.save(state, state_path + ".new")
        os.replace(state_path + ".new", state_path)
        export(model, config, args.work)

    start, running = time.time(), None
    while step < steps:
        length = LONG_ROW if step >= LONG_FROM else SHORT_ROW
        inputs, targets = rows.batch(length)
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        rate = learning_rate(step)
        for group in adam.param_groups:
            group["lr"] = 0.004 * rate
        adam.step()
        muon.step(0.02 * rate)
        model.zero_grad(set_to_none=True)
        step += 1
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step} loss {running:.4f} rate {rate:.3f} {time.time() - start:.0f} s",
                  flush=True)
        if step % args.save_every == 0 or step == steps:
            save()

    # What ships is what is measured: the weights after rounding to BF16, on stories never seen.
    model.load_state_dict({n: p.to(torch.bfloat16).float() for n, p in model.state_dict().items()})
    held_out = Rows(tokenizer, args.seed + 1000)
    with torch.no_grad():
        losses = []
        for _ in range(10):
            inputs, targets = held_out.batch(LONG_ROW)
            losses.append(torch.nn.functional.cross_entropy(
                model(inputs).logits.flatten(0, 1), targets.flatten()).item())
    print(f"held-out loss {sum(losses) / len(losses):.4f} nats per token", flush=True)
    for i, prompt in enumerate(("Once upon a time", "One day", "There was a little cat")):
        print(sample(model, tokenizer, prompt, 0.0, 0), "\n", flush=True)
        print(sample(model, tokenizer, prompt, 0.8, i), "\n", flush=True)
    export(model, config, args.out)
    if os.path.abspath(args.work) != os.path.abspath(args.out):
        Tokenizer.from_file(tokenizer_path).save(os.path.join(args.out, "tokenizer.json"))


if __name__ == "__main__":
    main()
