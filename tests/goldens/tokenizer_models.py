#!/usr/bin/env python3
"""Makes tests/goldens/tokenizer/: small tokenizers of the project's own and the reference's ids.

Four kinds: GPT-2's byte level, Llama 2's SentencePiece style with byte fallback, Qwen 2's NFC and
split regex, and a tokenizer.model of SentencePiece itself with Llama 2's settings. They are trained
on text that this script makes.

    python3 tests/goldens/tokenizer_models.py
"""
import io
import json
import os
import random
import subprocess
import sys

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def corpus():
    rng = random.Random(1)
    names = "Ada Ben Chloé Dai Eva Finn Grace Hugo Ines Jürgen Kai Lily Zoë 小明 Иван".split()
    verbs = "saw found made lost liked painted carried opened followed remembered".split()
    things = "bird stone river garden lantern ticket letter window kettle map 本 дом".split()
    places = "by the sea, in town, under the old bridge, near the station, at home".split(", ")
    for _ in range(3000):
        text = (f"{rng.choice(names)} {rng.choice(verbs)} a {rng.choice(things)} "
                f"{rng.choice(places)}. It's {rng.randint(0, 2030)}, and they're happy!")
        yield text + rng.choice(["", "\n", "\n\n    - x = y;\n", " 😀"])


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=800, show_progress=False,
                                  special_tokens=["<|endoftext|>"],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=900, show_progress=False, special_tokens=special,
        limit_alphabet=70))
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def qwen2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=700, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True)
         for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False),
                          AddedToken("Lily", single_word=True, normalized=True),
                          AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    return tokenizer


def sentencepiece():
    import sentencepiece as library
    model = io.BytesIO()  # a path would become part of the model
    library.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_writer=model, vocab_size=600, model_type="bpe",
        byte_fallback=True, character_coverage=0.999, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    return model.getvalue()


def write_oracle(folder):
    subprocess.check_call([sys.executable, os.path.join(HERE, "tokenizer_oracle.py"), folder,
                           os.path.join(folder, "expected.jsonl"), "--random", "160"])


def main():
    for name, make in (("byte_level", byte_level), ("metaspace", metaspace), ("qwen2", qwen2)):
        folder = os.path.join(HERE, "tokenizer", name)
        os.makedirs(folder, exist_ok=True)
        make().save(os.path.join(folder, "tokenizer.json"), pretty=False)
        write_oracle(folder)
    folder = os.path.join(HERE, "tokenizer", "sentencepiece")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(sentencepiece())
    write_oracle(folder)


if __name__ == "__main__":
    main()
