"""What a rank holds is what was planned: for layouts of a random checkpoint, `phalanx plan`'s weight
and KV bytes against what each rank reports (within 1%) and, above an empty worker's baseline,
against its resident memory in /proc/PID/smaps_rollup (within 3%). And no rank holds what the layout
doesn't give it: the sum over ranks is the checkpoint times what is replicated.

Usage: memory_test.py --phalanx PATH [--all]
With --all every layout of up to 8 ranks on a checkpoint of 1.2 GB (some minutes, 14 GB of memory);
without, a few on one of 0.5 GB."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import harness

ALL = "--all" in sys.argv

FEW = ["tp=1", "tp=2", "pp=2", "sp=2", "tp=3", "pp=2,tp=2", "sp=2,tp=2"]
# Of a mixture of 8 experts; etp = sp*tp / ep ranks share each.
FEW_EXPERTS = ["tp=2,ep=1", "tp=2,ep=2"]
EXPERTS = 8
KV_BLOCKS = 128


def layouts(experts):
    if not ALL:
        return FEW_EXPERTS if experts else FEW
    found = []
    if experts:
        for axes in ("tp=1", "tp=2", "tp=3", "tp=4", "sp=2", "sp=2,tp=2", "pp=2,tp=2", "pp=2,sp=2",
                     "tp=6", "tp=8", "sp=2,tp=4"):
            size = int(axes.split("tp=")[1]) if "tp=" in axes else 1
            size *= 2 if "sp=2" in axes else 1
            found += [f"{axes},ep={ep}" for ep in range(1, size + 1) if size % ep == 0]
        return found
    for pp in range(1, 9):
        for sp in range(1, 9):
            for tp in range(1, 9):
                if pp * sp * tp <= 8:
                    found.append(f"pp={pp},sp={sp},tp={tp}")
    return found


def write_checkpoint(directory, hidden, intermediate, layers, vocabulary, experts):
    """BF16 values of both signs around 2^-6, the same block again and again."""
    heads, kv = hidden // 128, hidden // 2
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
              "intermediate_size": intermediate, "num_hidden_layers": layers,
              "num_attention_heads": heads, "num_key_value_heads": heads // 2,
              "vocab_size": vocabulary, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu"}
    if experts:
        config.update({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
                       "num_local_experts": EXPERTS, "num_experts_per_tok": 2})
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden),
              "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        shapes.update({f"model.layers.{i}.{name}.weight": shape for name, shape in (
            ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)),
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)))})
        if experts:
            shapes[f"model.layers.{i}.block_sparse_moe.gate.weight"] = (EXPERTS, hidden)
            for e in range(EXPERTS):
                at = f"model.layers.{i}.block_sparse_moe.experts.{e}"
                shapes.update({f"{at}.w1.weight": (intermediate, hidden),
                               f"{at}.w3.weight": (intermediate, hidden),
                               f"{at}.w2.weight": (hidden, intermediate)})
        else:
            at = f"model.layers.{i}.mlp"
            shapes.update({f"{at}.gate_proj.weight": (intermediate, hidden),
                           f"{at}.up_proj.weight": (intermediate, hidden),
                           f"{at}.down_proj.weight": (hidden, intermediate)})
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = bytearray(1 << 22)
    block[0::2] = os.urandom(1 << 21)
    block[1::2] = os.urandom(1 << 21).translate(bytes(0x3C if i < 128 else 0xBC for i in range(256)))
    with open(os.path.join(directory, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for written in range(0, end, len(block)):
            file.write(block[: min(len(block), end - written)])
    shutil.copy(os.path.join(harness.DEMO_MODEL, "tokenizer.json"), directory)
    return end


def resident_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def ranks_of(model, layout):
    """By rank: what it reports, and its resident bytes while it has computed nothing yet."""
    with harness.Server("--layout", layout, "--workers", "mpirun", "--threads", "1", "--kv-blocks",
                        str(KV_BLOCKS), model=model) as server:
        done = subprocess.run([harness.binary(), "status", "--endpoint", server.endpoint, "--json"],
                              capture_output=True, text=True, timeout=60, check=True)
        ranks = json.loads(done.stdout)["ranks"]
        return [(int(rank["weight_bytes"]), int(rank["kv_bytes"]), resident_bytes(rank["pid"]))
                for rank in ranks]


class Memory(unittest.TestCase):
    def test_ranks_hold_what_was_planned(self):
        self.check_all(False, (2048, 5632, 10, 32000) if ALL else (2048, 5632, 4, 16000))

    def test_ranks_hold_their_experts(self):
        self.check_all(True, (1536, 4096, 3, 8000) if ALL else (1024, 2816, 2, 8000))

    def check_all(self, experts, shape):
        with tempfile.TemporaryDirectory() as model:
            file_bytes = write_checkpoint(model, *shape, experts)
            print(f"  checkpoint of {file_bytes / 1e6:.0f} MB", file=sys.stderr)
            worst = [0.0, 0.0]
            for layout in layouts(experts):
                with self.subTest(layout):
                    self.check(model, layout, file_bytes, worst)
            print(f"  worst: reported {worst[0]:.3%}, resident {worst[1]:.3%}", file=sys.stderr)

    def check(self, model, layout, file_bytes, worst):
        # `plan` plans the axes that are left out.
        axes = {"dp": "1", "pp": "1", "sp": "1", "tp": "1"}
        axes.update(axis.split("=") for axis in layout.split(","))
        settled = ",".join(f"{axis}={size}" for axis, size in axes.items())
        done = subprocess.run([harness.binary(), "plan", "--model", model, "--layout", settled, "--hosts",
                               "localhost:8", "--threads", "1", "--json"],
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        planned = json.loads(done.stdout)["ranks"]
        ranks = ranks_of(model, layout)
        empty = ranks_of(harness.DEMO_MODEL, layout.split(",ep=")[0])  # it has no experts
        self.assertEqual(len(planned), len(ranks))
        for rank, (plan, real, base) in enumerate(zip(planned, ranks, empty)):
            weights, kv, resident = real
            expected = plan["weight_bytes"] + KV_BLOCKS * plan["kv_block_bytes"]
            baseline = base[2] - base[0] - base[1]
            reported = (weights + kv) / expected - 1
            held = (resident - baseline) / expected - 1
            worst[0] = max(worst[0], abs(reported))
            worst[1] = max(worst[1], abs(held))
            self.assertLess(abs(reported), 0.01, f"rank {rank}: planned {expected}, reports {real}")
            self.assertLess(abs(held), 0.03, f"rank {rank}: planned {expected}, resident "
                                             f"{resident} above a baseline of {baseline}")
        # Over all ranks: every weight once for each sp rank, but embedding, head and experts (their
        # shards lie over sp and tp) once; norms and the pad of packed panels are the rest.
        sp = int(axes["sp"])
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        shared = 2 * 2 * config["vocab_size"] * config["hidden_size"]
        if "num_local_experts" in config:
            shared += (2 * 3 * config["num_hidden_layers"] * EXPERTS * config["hidden_size"] *
                       config["intermediate_size"])
        once = shared + sp * (file_bytes - shared)
        self.assertLess(abs(sum(rank[0] for rank in ranks) / once - 1), 0.03)
        print(f"  {layout}: {len(ranks)} ranks as planned", file=sys.stderr)


if __name__ == "__main__":
    sys.argv = [argument for argument in sys.argv if argument != "--all"]
    harness.main()
