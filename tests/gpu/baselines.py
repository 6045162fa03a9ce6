#!/usr/bin/env python3
"""What PyTorch takes for the shapes that gpu_timing measures: JSON on stdout.

Matrix products are cuBLAS's, attention is scaled_dot_product_attention. With --transformers, decode
at batch 1 of a model made from random weights, static cache and torch.compile. Medians of nine runs
between CUDA events. Exit code 0, saying so, where PyTorch or a device is missing.
"""

import argparse
import inspect
import json
import statistics
import sys

# hidden, layers, heads, KV heads, head width, intermediate, vocabulary
SHAPES = {
    "llama-3.2-1b": (2048, 16, 32, 8, 64, 8192, 128256),
    "llama-3.1-8b": (4096, 32, 32, 8, 128, 14336, 128256),
}
REPEATS = 9


def measure(torch, work, prepare=lambda: None, most=1000):
    """Microseconds: median, least, most of one call, of as many together as take 20 ms, `most` at
    most. `prepare` comes before each round of them and isn't measured."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once(times):
        prepare()
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    once(2)
    together = max(1, min(most, int(0.02 / max(once(1), 1e-7))))
    seconds = sorted(once(together) for _ in range(REPEATS))
    return {
        "microseconds": statistics.median(seconds) * 1e6,
        "least": seconds[0] * 1e6,
        "most": seconds[-1] * 1e6,
    }


def products(torch, shape, rows):
    """Each product of a layer, and the head's of one row, by cuBLAS."""
    hidden, _, heads, kv_heads, width, intermediate, vocabulary = shape
    sizes = {
        "qkv": (rows, (heads + 2 * kv_heads) * width, hidden),
        "o": (rows, hidden, heads * width),
        "gate_up": (rows, 2 * intermediate, hidden),
        "down": (rows, hidden, intermediate),
        "head": (1, vocabulary, hidden),
    }
    out = {}
    for name, (m, n, k) in sizes.items():
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / 64
        out[name] = measure(torch, lambda x=x, w=w: torch.nn.functional.linear(x, w))
    return out


def attention(torch, shape, rows):
    """Causal attention of one sequence of `rows` tokens."""
    _, _, heads, kv_heads, width, _, _ = shape

    def tensor(count):
        return torch.randn(1, count, rows, width, device="cuda", dtype=torch.bfloat16)

    q, k, v = tensor(heads), tensor(kv_heads), tensor(kv_heads)
    attend = torch.nn.functional.scaled_dot_product_attention
    found = []
    try:
        found.append(measure(torch, lambda: attend(q, k, v, is_causal=True, enable_gqa=True)))
    except (RuntimeError, TypeError) as error:
        print(f"grouped queries: {error}", file=sys.stderr)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    found.append(measure(torch, lambda: attend(q, k, v, is_causal=True)))
    return min(found, key=lambda times: times["microseconds"])


def static_cache(torch, transformers, config):
    """A cache for one sequence of 1,024 tokens; its arguments differ between versions."""
    known = inspect.signature(transformers.StaticCache.__init__).parameters
    given = {
        "config": config,
        "batch_size": 1,
        "max_batch_size": 1,
        "max_cache_len": 1024,
        "device": "cuda",
        "dtype": torch.bfloat16,
    }
    return transformers.StaticCache(**{k: v for k, v in given.items() if k in known})


def transformers_decode(torch, shape):
    """A token of decode at batch 1 after 512, static cache, torch.compile."""
    import transformers

    hidden, layers, heads, kv_heads, width, intermediate, vocabulary = shape
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=1024,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.inference_mode():
        model = transformers.LlamaForCausalLM(config).eval()
        cache = static_cache(torch, transformers, config)
        prompt = torch.zeros(1, 512, dtype=torch.long)

        def prefill():
            # Newer versions count by themselves what the cache holds.
            cache.reset()
            model(prompt, past_key_values=cache, cache_position=torch.arange(512))

        prefill()
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
        token = torch.zeros(1, 1, dtype=torch.long)
        position = torch.tensor([512])
        step = lambda: forward(token, past_key_values=cache, cache_position=position)
        for _ in range(5):
            step()
        return measure(torch, step, prefill, most=64)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformers", action="store_true")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: PyTorch is not installed", file=sys.stderr)
        return 0
    if not torch.cuda.is_available():
        print("skipped: no CUDA device", file=sys.stderr)
        return 0
    out = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "models": []}
    for name, shape in SHAPES.items():
        model = {"model": name, "prefill": []}
        for rows in (2048, 8192):
            layer = products(torch, shape, rows)
            attend = attention(torch, shape, rows)
            total = shape[1] * (
                sum(layer[n]["microseconds"] for n in ("qkv", "o", "gate_up", "down"))
                + attend["microseconds"]
            ) + layer["head"]["microseconds"]
            model["prefill"].append(
                {"rows": rows, "microseconds": total, "products": layer, "attention": attend}
            )
        if arguments.transformers:
            model["decode"] = transformers_decode(torch, shape)
        out["models"].append(model)
    print(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
