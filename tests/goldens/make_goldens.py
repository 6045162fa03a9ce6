"""Makes the model goldens: small random checkpoints and what Transformers says of them.

    python make_goldens.py [--shared DIR] [--demo DIR] [--only NAME,...] [--check]

models/<name>/    a Hugging Face checkpoint with random weights; a pure function of this file
expected/<name>.json   Transformers' answers on it, see README.md for the fields

--check writes nothing and compares what is committed with what this script would write.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import zlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CONFIG_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
TOP = 5
GREEDY_PROMPT, GREEDY_TOKENS = 16, 32

OLD, NEW = "old keys", "Transformers 5 keys"

# What every config holds unless a case says otherwise. None as a value removes the key.
BASE = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 512, "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "use_cache": True,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
         "mlp_bias": False, "pretraining_tp": 1}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
           "output_router_logits": False, "router_aux_loss_coef": 0.02, "sliding_window": None}
QWEN2_MOE = {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
             "max_window_layers": 21, "output_router_logits": False, "router_aux_loss_coef": 0.001,
             "rms_norm_eps": 1e-6, "sliding_window": 32768, "use_sliding_window": False}
QWEN3_MOE = {**QWEN2_MOE, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
             "attention_bias": False, "sliding_window": None}


def case(family, keys, rope=None, theta=10000.0, dtypes=("F32",), positions=64, style=OLD, shards=1,
         both_styles=False, fused=False, fp8=None):
    """One model of the list below.

    rope: the scaling's keys, or None for plain RoPE.
    both_styles: also write config-other-style.json.
    fused: the experts of a layer as one tensor, as Transformers 5 holds them; else one by one, as it
        and every published checkpoint store them.
    fp8: the layers' matrices as F8_E4M3 with scales: "row" and "tensor" as compressed-tensors and
        AutoFP8 write them, [rows, columns] of a block as Transformers' fine-grained FP8 does. Those
        whose names end in one of KEPT stay BF16.
    """
    return dict(family=family, keys=keys, rope=rope, theta=theta, dtypes=dtypes,
                positions=positions, style=style, shards=shards, both_styles=both_styles,
                fused=fused, fp8=fp8)


def shape(hidden, heads, kv_heads, intermediate, vocab, head_dim=None, **more):
    keys = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate, "vocab_size": vocab, **more}
    if head_dim:
        keys["head_dim"] = head_dim
    return keys


CASES = {
    # The oldest form: no num_key_value_heads, no head_dim, untied.
    "llama-mha": case(LLAMA, {
        "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 84, "vocab_size": 307,
        "rms_norm_eps": 1e-6}),
    "llama-gqa-tied": case(
        LLAMA, shape(64, 4, 2, 72, 257, tie_word_embeddings=True), dtypes=("F32", "BF16", "F16"),
        style=NEW),
    "llama-bias": case(
        LLAMA, shape(48, 3, 1, 72, 139, attention_bias=True, mlp_bias=True),
        dtypes=("F32", "BF16")),
    "llama-head-dim": case(
        LLAMA, shape(42, 3, 1, 72, 203, head_dim=64, tie_word_embeddings=True), theta=500000.0),
    "llama3-rope": case(
        LLAMA, shape(48, 2, 1, 88, 139, head_dim=24),
        rope={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        positions=320, style=NEW, both_styles=True),
    "llama-linear-rope": case(
        LLAMA, shape(48, 3, 3, 64, 150, num_hidden_layers=3, tie_word_embeddings=True),
        rope={"rope_type": "linear", "factor": 4.0}, positions=320, both_styles=True),
    "llama-yarn": case(
        LLAMA, shape(48, 2, 1, 88, 139, head_dim=24),
        rope={"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
              "original_max_position_embeddings": 128},
        positions=320, style=NEW, both_styles=True),
    "mistral-window": case(
        MISTRAL, shape(48, 6, 3, 40, 139, head_dim=16, sliding_window=16),
        dtypes=("F32", "BF16")),
    "mistral-window-long": case(
        MISTRAL, shape(48, 3, 1, 72, 171, head_dim=16, sliding_window=40), positions=320,
        style=NEW),
    "mistral-full": case(
        MISTRAL, shape(48, 9, 3, 40, 139, head_dim=16, sliding_window=None), theta=1000000.0,
        dtypes=("F32", "F16"), shards=3),
    # sliding_window and max_window_layers mean nothing here, because use_sliding_window is false.
    "qwen2": case(
        QWEN2, shape(64, 4, 2, 56, 157, rms_norm_eps=1e-6, tie_word_embeddings=True,
                     use_sliding_window=False, sliding_window=16, max_window_layers=1),
        theta=1000000.0, dtypes=("F32", "BF16")),
    "qwen3": case(
        QWEN3, shape(48, 4, 2, 72, 139, head_dim=24, rms_norm_eps=1e-6, use_sliding_window=False,
                     sliding_window=None, max_window_layers=2),
        theta=1000000.0, dtypes=("F32", "BF16"), style=NEW),
    "qwen3-tied": case(
        QWEN3, shape(40, 2, 1, 56, 257, head_dim=80, rms_norm_eps=1e-6, tie_word_embeddings=True,
                     use_sliding_window=False, sliding_window=None, max_window_layers=2),
        theta=1000000.0),
    # Heads as wide as those of the published models of most families.
    "qwen3-wide": case(
        QWEN3, shape(32, 2, 1, 48, 149, head_dim=128, rms_norm_eps=1e-6, use_sliding_window=False,
                     sliding_window=None, max_window_layers=2),
        theta=1000000.0, dtypes=("BF16",)),
    # Six experts: no power of two divides them among ranks.
    "mixtral": case(
        MIXTRAL, shape(48, 4, 2, 40, 157, num_hidden_layers=8, num_local_experts=6,
                       num_experts_per_tok=2), theta=1000000.0, shards=2),
    "mixtral-fused": case(
        MIXTRAL, shape(40, 4, 2, 72, 139, head_dim=16, num_local_experts=5, num_experts_per_tok=2),
        theta=1000000.0, dtypes=("F32", "BF16"), style=NEW, fused=True),
    # Experts in layers 1, 3 and 7; the others are dense.
    "qwen2-moe": case(
        QWEN2_MOE, shape(64, 4, 2, 72, 157, num_hidden_layers=8, decoder_sparse_step=2,
                         mlp_only_layers=[5], num_experts=6, num_experts_per_tok=4,
                         moe_intermediate_size=33, shared_expert_intermediate_size=56,
                         norm_topk_prob=False), theta=1000000.0),
    "qwen2-moe-norm": case(
        QWEN2_MOE, shape(40, 4, 4, 56, 139, tie_word_embeddings=True, num_experts=8,
                         num_experts_per_tok=2, moe_intermediate_size=40,
                         shared_expert_intermediate_size=96, norm_topk_prob=True),
        dtypes=("F32", "BF16"), style=NEW, both_styles=True),
    "qwen3-moe": case(
        QWEN3_MOE, shape(48, 4, 2, 72, 157, head_dim=24, num_hidden_layers=8, decoder_sparse_step=1,
                         mlp_only_layers=[], num_experts=6, num_experts_per_tok=2,
                         moe_intermediate_size=40, norm_topk_prob=True),
        theta=1000000.0, dtypes=("F32", "BF16")),
    "qwen3-moe-mixed": case(
        QWEN3_MOE, shape(40, 2, 1, 72, 257, head_dim=40, num_hidden_layers=3,
                         tie_word_embeddings=True, mlp_only_layers=[0], num_experts=8,
                         num_experts_per_tok=4, moe_intermediate_size=96, norm_topk_prob=False),
        theta=1000000.0, style=NEW, fused=True),
    # Quantised checkpoints: no dimension is a whole number of blocks.
    "qwen3-fp8-block": case(
        QWEN3, shape(96, 4, 2, 168, 139, head_dim=32, rms_norm_eps=1e-6, use_sliding_window=False,
                     sliding_window=None, max_window_layers=2),
        theta=1000000.0, dtypes=("BF16",), style=NEW, fp8=[64, 64]),
    "llama-fp8-row": case(
        LLAMA, shape(48, 3, 1, 72, 139, head_dim=24), dtypes=("BF16",), fp8="row"),
    "llama-fp8-tensor": case(
        LLAMA, shape(64, 4, 2, 72, 139, attention_bias=True), dtypes=("BF16",), fp8="tensor"),
}
# Matrices of FP8 checkpoints that aren't quantised, of the second layer.
KEPT = ("layers.1.mlp.down_proj.weight",)
E4M3_MOST = 448.0


def config_values(spec, dtype, style):
    """Returns config.json's content, in the old keys or in those of Transformers 5."""
    values = {**BASE, **spec["family"], **copy.deepcopy(spec["keys"])}
    rope = spec["rope"]
    if style == OLD:
        values["torch_dtype"] = CONFIG_DTYPES[dtype]
        values["rope_theta"] = spec["theta"]
        values["rope_scaling"] = None
        if rope:
            values["rope_scaling"] = dict(rope)
            if rope["rope_type"] == "linear":  # Before 4.43 the key was "type".
                values["rope_scaling"]["type"] = values["rope_scaling"].pop("rope_type")
        values["transformers_version"] = "4.41.2"
    else:
        values["dtype"] = CONFIG_DTYPES[dtype]
        values["rope_parameters"] = {"rope_theta": spec["theta"],
                                     **(rope or {"rope_type": "default"})}
        values["transformers_version"] = "5.0.0"
    fp8 = spec["fp8"]
    kept = ["lm_head"] + ["model." + name.removesuffix(".weight") for name in KEPT]
    if fp8 == "row":
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel",
                   "dynamic": False, "observer": "minmax"}
        values["quantization_config"] = {
            "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": kept,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                          "input_activations": None}},
            "quantization_status": "compressed", "kv_cache_scheme": None}
    elif fp8:
        values["quantization_config"] = {
            "quant_method": "fp8", "activation_scheme": "static" if fp8 == "tensor" else "dynamic",
            ("ignored_layers" if fp8 == "tensor" else "modules_to_not_convert"): kept}
        if fp8 != "tensor":
            values["quantization_config"].update({"fmt": "e4m3", "weight_block_size": fp8})
    return dict(sorted(values.items()))


def is_quantised(name):
    return (name.endswith("_proj.weight") and not name.endswith(KEPT))


def quantise(tensors, fp8):
    """Returns (tensors as an FP8 checkpoint stores them, the F32 values that they stand for)."""
    stored, values = {}, {}
    for name, tensor in tensors.items():
        if not is_quantised(name):
            stored[name] = tensor
            values[name] = tensor.float()
            continue
        w = tensor.float()
        rows, columns = w.shape
        block = [1, columns] if fp8 == "row" else [rows, columns] if fp8 == "tensor" else fp8
        scales = torch.stack([
            torch.stack([b.abs().max() / E4M3_MOST for b in band.split(block[1], 1)])
            for band in w.split(block[0], 0)])
        spread = scales.repeat_interleave(block[0], 0)[:rows]
        spread = spread.repeat_interleave(block[1], 1)[:, :columns]
        if fp8 == "row":  # llm-compressor keeps them in the model's type.
            scales = scales.bfloat16()
            spread = scales.float().expand(rows, columns)
        codes = (w / spread).clamp(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn)
        stored[name] = codes
        values[name] = codes.float() * spread
        if fp8 == "tensor":
            stored[name + "_scale"] = scales.reshape(())
            stored[name.replace(".weight", ".input_scale")] = torch.tensor(0.125)
        else:
            stored[name + ("_scale" if fp8 == "row" else "_scale_inv")] = scales.contiguous()
    return stored, values


def random_tensor(model_name, name, size):
    """Values that make a lively model: attention and greedy leads vary, nothing saturates."""
    rng = np.random.default_rng([zlib.crc32(model_name.encode()), zlib.crc32(name.encode())])
    values = rng.standard_normal(size)
    if "norm" in name:
        values = 1.0 + 0.25 * values
    elif name.endswith(".bias"):
        values *= 0.3
    elif "embed_tokens" in name or "lm_head" in name:
        values *= 0.2
    elif "q_proj" in name or "k_proj" in name:
        values *= 1.1 / size[1] ** 0.5
    elif name.endswith("mlp.gate.weight"):  # A router: some tokens are of two minds, some aren't.
        values *= 2.0 / size[1] ** 0.5
    else:
        values *= 1.2 / size[-1] ** 0.5
    return torch.from_numpy(values.astype(np.float32))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def separate_experts(tensors, family):
    """Fused experts one by one, under the names that published checkpoints have."""
    mixtral = family is MIXTRAL
    prefix, gate, up, down = (("block_sparse_moe", "w1", "w3", "w2") if mixtral
                              else ("mlp", "gate_proj", "up_proj", "down_proj"))
    result = {}
    for key, tensor in tensors.items():
        layer, _, what = key.partition(".mlp.experts.")
        if not what:
            router = key.endswith(".mlp.gate.weight")
            result[key.replace(".mlp.", f".{prefix}.") if router else key] = tensor
            continue
        for i, expert in enumerate(tensor):
            parts = {down: expert}
            if what == "gate_up_proj":
                parts = dict(zip((gate, up), expert.chunk(2)))
            for part, value in parts.items():
                result[f"{layer}.{prefix}.experts.{i}.{part}.weight"] = value.contiguous()
    return result


def write_model(name, spec, dtype, folder, plain=None):
    """Of an FP8 model `plain` gets what its matrices stand for, in F32."""
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"), config_values(spec, dtype, spec["style"]))
    if spec["both_styles"]:
        other = OLD if spec["style"] == NEW else NEW
        write_json(os.path.join(folder, "config-other-style.json"),
                   config_values(spec, dtype, other))
    write_json(os.path.join(folder, "generation_config.json"),
               {"bos_token_id": 1, "eos_token_id": 2})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors = {key: random_tensor(name, key, tuple(p.shape)).to(TORCH_DTYPES[dtype])
               for key, p in model.named_parameters()}
    if not spec["fused"]:
        tensors = separate_experts(tensors, spec["family"])
    if spec["fp8"]:
        tensors, values = quantise(tensors, spec["fp8"])
        os.makedirs(plain)
        write_json(os.path.join(plain, "config.json"),
                   config_values({**spec, "fp8": None}, "F32", spec["style"]))
        save_shard(values, os.path.join(plain, "model.safetensors"))
    if spec["shards"] == 1:
        save_shard(tensors, os.path.join(folder, "model.safetensors"))
        return
    keys, files, total = sorted(tensors), {}, 0
    for i in range(spec["shards"]):
        file = f"model-{i + 1:05d}-of-{spec['shards']:05d}.safetensors"
        # Strided, so that each layer lies in several shards.
        part = {k: tensors[k] for k in keys[i::spec["shards"]]}
        save_shard(part, os.path.join(folder, file))
        files.update({k: file for k in part})
        total += sum(t.numel() * t.element_size() for t in part.values())
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))})


def save_shard(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def load(folder, dtype, attention="eager", experts="eager"):
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "num_experts_per_tok"):
        config._experts_implementation = experts
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention,
        output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], (folder, what, info[what])
    assert {p.dtype for p in model.parameters()} == {dtype}
    return model.eval()


@torch.no_grad()
def log_probs(model, ids):
    """Returns (logits, log-probabilities) as float32 [len(ids), vocab]."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits, logits.log_softmax(-1)


@torch.no_grad()
def routing(model, ids):
    """Of each layer with experts: (chosen experts in rising order [len(ids), k], how much more
    probable the last chosen one is than the first that isn't [len(ids)])."""
    routes, hooks = [], []

    def note(module, _, output):
        logits = output[0] if isinstance(output, tuple) else output
        probabilities = logits.float().softmax(-1)
        top = probabilities.topk(module.top_k + 1)
        margins = top.values[:, module.top_k - 1] - top.values[:, module.top_k]
        routes.append((top.indices[:, :module.top_k].sort(-1).values, margins))

    for name, module in model.named_modules():
        if name.endswith(".mlp.gate"):
            hooks.append(module.register_forward_hook(note))
    log_probs(model, ids)
    for hook in hooks:
        hook.remove()
    return routes


@torch.no_grad()
def greedy(model, prompt, count):
    """Continues `prompt` by `count` tokens, the whole text anew for each: no cache to trust."""
    ids, leads, probs = list(prompt), [], []
    for _ in range(count):
        logits, lps = log_probs(model, ids)
        top = logits[-1].topk(2)
        leads.append(float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
        probs.append(float(lps[-1, ids[-1]]))
    return {"prompt_ids": list(prompt), "token_ids": ids[len(prompt):], "logprobs": probs,
            "leads": leads}


def expect(name, folder, dtype, ids, greedy_prompt, greedy_count):
    """Returns the golden values for one checkpoint, see README.md."""
    reference = load(folder, torch.float32)
    logits, lps = log_probs(reference, ids)
    positions = []
    for i in range(len(ids) - 1):
        top = lps[i].topk(TOP)
        two = logits[i].topk(2).values
        positions.append({
            "logprob": float(lps[i, ids[i + 1]]), "argmax": int(top.indices[0]),
            "lead": float(two[0] - two[1]),
            "top": [{"id": int(t), "logprob": float(v)} for t, v in zip(top.indices, top.values)]})
    result = {"model": name, "dtype": dtype, "input_ids": ids, "positions": positions,
              "greedy": greedy(reference, greedy_prompt, greedy_count)}
    routes = routing(reference, ids)
    if routes:
        result["routing_margin"] = min(float(margins.min()) for _, margins in routes)
    if dtype != "F32":
        native_model = load(folder, TORCH_DTYPES[dtype], "sdpa", None)
        native_lps = log_probs(native_model, ids)[1]
        native, errors, top_errors = [], [], []
        for i, position in enumerate(positions):
            logprob = float(native_lps[i, ids[i + 1]])
            top = [float(native_lps[i, t["id"]]) for t in position["top"]]
            native.append({"logprob": logprob, "argmax": int(native_lps[i].argmax()),
                           "top_logprobs": top})
            errors.append(abs(logprob - position["logprob"]))
            top_errors += [abs(a - t["logprob"]) for a, t in zip(top, position["top"])]
        result["native"] = {
            "max_error": max(errors), "mean_error": sum(errors) / len(errors),
            "top_max_error": max(top_errors), "top_mean_error": sum(top_errors) / len(top_errors),
            "argmax_agree": sum(n["argmax"] == p["argmax"] for n, p in zip(native, positions)),
            "positions": native}
        if routes:
            result["native"]["routing_differs"] = sum(
                int((a != b).any(-1).sum())
                for (a, _), (b, _) in zip(routes, routing(native_model, ids)))
    return result


def dump(value):
    """JSON with 9 significant digits, one position a line."""
    def text(v):
        if isinstance(v, float):
            return format(v, ".9g")
        if isinstance(v, dict):
            return "{" + ", ".join(f"{json.dumps(k)}: {text(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            if v and isinstance(v[0], dict) and "argmax" in v[0]:
                return "[\n" + ",\n".join(text(x) for x in v) + "\n]"
            return "[" + ", ".join(text(x) for x in v) + "]"
        return json.dumps(v)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {text(v)}" for k, v in value.items()) + "\n}\n"


def random_ids(name, vocab, count):
    """Start token, then random ids: each is as good as any other for a random model."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [1] + [int(x) for x in rng.integers(3, vocab, count - 1)]


def check_styles(folder):
    """Old and new configuration keys must be the same model to Transformers."""
    with tempfile.TemporaryDirectory() as other:
        for file in os.listdir(folder):
            shutil.copy(os.path.join(folder, file), other)
        shutil.move(os.path.join(other, "config-other-style.json"),
                    os.path.join(other, "config.json"))
        ids = random_ids(folder, 100, 100)
        a, b = (log_probs(load(f, torch.float32), ids)[0] for f in (folder, other))
        assert torch.equal(a, b), folder


def text_case(name, folder, dtype, prompt, positions):
    """A trained model: the input is its own greedy continuation of `prompt`."""
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    prompt_ids = tokenizer.encode(prompt).ids
    model = load(folder, torch.float32)
    ids = prompt_ids + greedy(model, prompt_ids, positions + 1 - len(prompt_ids))["token_ids"]
    result = expect(name, folder, dtype, ids, prompt_ids, 2 * positions)
    eos = model.config.eos_token_id
    tokens = result["greedy"]["token_ids"]
    if eos in tokens:
        end = tokens.index(eos) + 1
        for key in ("token_ids", "logprobs", "leads"):
            result["greedy"][key] = result["greedy"][key][:end]
    result["greedy"]["prompt"] = prompt
    result["greedy"]["text"] = tokenizer.decode(result["greedy"]["token_ids"])
    return result


def compare(path, result):
    """Returns a complaint, or None if the committed file says the same within 1e-5."""
    if not os.path.exists(path):
        return f"{path}: missing"
    with open(path, encoding="utf-8") as f:
        old = json.load(f)
    if old["input_ids"] != result["input_ids"]:
        return f"{path}: other input_ids"
    worst = max(abs(a["logprob"] - b["logprob"])
                for a, b in zip(old["positions"], result["positions"]))
    print(f"{os.path.basename(path)}: differs by at most {worst:.2g}")
    return f"{path}: logprobs differ by {worst}" if worst > 1e-5 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", help="folder with models/tinystories-656k")
    parser.add_argument("--demo", default=os.path.join(HERE, "../../launcher/demo-model"))
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    only = set(args.only.split(",")) if args.only else None
    os.makedirs(os.path.join(HERE, "expected"), exist_ok=True)
    complaints = []

    def finish(result):
        path = os.path.join(HERE, "expected", result["model"] + ".json")
        if args.check:
            complaint = compare(path, result)
            complaints.extend([complaint] if complaint else [])
            return
        with open(path, "w", encoding="utf-8") as f:
            f.write(dump(result))
        leads = sorted(p["lead"] for p in result["positions"])
        print(f"{result['model']}: leads {leads[0]:.2g} to {leads[-1]:.2g}, median "
              f"{leads[len(leads) // 2]:.2g}", end="")
        if "native" in result:
            n = result["native"]
            print(f"; native max {n['max_error']:.2g} mean {n['mean_error']:.2g}, top max "
                  f"{n['top_max_error']:.2g} mean {n['top_mean_error']:.2g}, argmax "
                  f"{n['argmax_agree']}/{len(leads)}", end="")
        if "routing_margin" in result:
            print(f"; routing margin {result['routing_margin']:.2g}, native routes differ "
                  f"{result.get('native', {}).get('routing_differs')}", end="")
        print(flush=True)

    for base, spec in CASES.items():
        for dtype in spec["dtypes"]:
            name = base + ("" if dtype == "F32" or spec["fp8"] else "-" + dtype.lower())
            if only and name not in only:
                continue
            folder = os.path.join(HERE, "models", name)
            with tempfile.TemporaryDirectory() as temporary:
                fresh = os.path.join(temporary, name)
                plain = os.path.join(temporary, "plain") if spec["fp8"] else None
                write_model(name, spec, dtype, fresh, plain)
                if args.check:
                    for file in os.listdir(fresh):
                        with open(os.path.join(fresh, file), "rb") as a, \
                                open(os.path.join(folder, file), "rb") as b:
                            if a.read() != b.read():
                                complaints.append(f"{folder}/{file}: not what this script writes")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(fresh, folder)
                if spec["both_styles"]:
                    check_styles(folder)
                ids = random_ids(name, spec["keys"]["vocab_size"], spec["positions"] + 1)
                finish(expect(name, plain or folder, dtype, ids, ids[:GREEDY_PROMPT],
                              GREEDY_TOKENS))

    if os.path.exists(os.path.join(args.demo, "model.safetensors")) and (
            not only or "demo-model" in only):
        finish(text_case("demo-model", args.demo, "BF16", "Once upon a time", 128))
    if args.shared and (not only or "tinystories-656k" in only):
        finish(text_case("tinystories-656k", os.path.join(args.shared, "models/tinystories-656k"),
                         "F32", "Once upon a time", 64))
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
