#!/usr/bin/env python3
"""Writes what the reference tokenizer says about many texts, one JSON object a line.

    tokenizer_oracle.py MODEL_DIR OUT.jsonl [--random N] [--seed S] [--text FILE ...] [--sentencepiece]

MODEL_DIR holds a tokenizer.json (reference: Hugging Face `tokenizers`) or only a tokenizer.model
(reference: SentencePiece, with BOS). Fields of a line: "text" with the ids "plain" (special tokens'
spellings are text), "parsed" (they are tokens) and "bare" (plain, nothing added around);
or "ids" with "decoded" (everything) and "skipped" (without special tokens).
`phalanx_tokenizer_compare MODEL_DIR OUT.jsonl` does the comparison.
"""
import argparse
import gzip
import json
import os
import random
import unicodedata

TRICKY = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "a", " a", "  a", "a ", "a  ", "a b",
    "a  b", "Hello, world!", "Hello world", " Hello", "hello  world   !", "I'm we've they'LL he'd",
    "'s 'S 'ſ 'K", "don't DON'T", "123", "1234567", "3.14159", "1,000,000", "a1b22c333",
    "٣٤٥ ²³¹ ½ Ⅷ", "naïve café", "nai\u0308ve cafe\u0301", "ÅÅÅ", "ﬁ ﬂ ﬀ",
    "한국어 텍스트", "\u1112\u1161\u11ab", "日本語のテキスト", "中文,文本。", "𠀀𠀁", "العربية", "עברית",
    "ไทย", "हिन्दी", "😀", "👩‍👩‍👧‍👦 🏳️‍🌈", "a😀b", "\u200b", "\u200d", "\ufeffbom", "\ufffd",
    "\u00a0nbsp\u00a0", "\u3000wide", "\u2028\u2029", "\x00", "a\x00b", "\x01\x02\x7f", "▁", "▁▁a",
    "a▁b", " ▁ ", "Ġ", "Ċ", "<0x41>", "<0x0A><0xFF>", "<unk>", "<s>", "</s>", "<s>a</s>",
    " <s> a </s> ", "<|endoftext|>", "a<|endoftext|>b", "  <|endoftext|>  ", "<|im_start|>user\nhi",
    "<|begin_of_text|><|eot_id|>", "[INST] x [/INST]", "<pad>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "if (x == 1) {\n\treturn;\n}\n\n\n", "    four\n        eight", "\n\n  x\n \n", "a\r\n\r\nb",
    "!!!???...", "--- === ___", "#include <x>", "http://a.b/c?d=e&f=g", "$100 €5 £3", "+-*/=<>^|~`",
    "A\u0300\u0301\u0323\u0316B", "q\u0307\u0323", "\u0344", "İstanbul", "ΑΣ ΣΑΣ", "ǅ ǆ", "ß ẞ",
    "\U000e0041", "\U0010ffff", "\ue000", "x" * 300, " " * 300, "ab" * 200, "é" * 150, "1" * 200,
    "\n" * 50, "\t\t \t", "The quick brown fox jumps over the lazy dog. " * 4,
]


def random_texts(count, seed, special):
    """Texts of many kinds: any code point, one script, marks, white space, tokens' spellings."""
    rng = random.Random(seed)
    alphabet = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    assigned = [c for c in alphabet if unicodedata.category(c) not in ("Cn", "Co")]
    marks = [c for c in assigned if unicodedata.category(c)[0] == "M"]
    spaces = list(" \t\n\r\v\f\u0085\u00a0\u1680\u2003\u2028\u2029\u202f\u3000\u200b")
    ascii_text = [chr(c) for c in range(128)]
    words = "the of and to in I'm don't it's We'll they've Hello world 2024 3.14 naïve ".split()
    starts = [0x20, 0xA0, 0x100, 0x370, 0x400, 0x590, 0x600, 0x900, 0xE00, 0x1100, 0x1E00, 0x2000,
              0x2460, 0x3040, 0x4E00, 0xA000, 0xAC00, 0xF900, 0xFF00, 0x10000, 0x11D00, 0x1D400,
              0x1F300, 0x20000, 0x2EBF0]
    for i in range(count):
        n = rng.randint(1, 24)
        kind = i % 8
        if kind == 0:
            yield "".join(rng.choice(alphabet) for _ in range(n))
        elif kind == 1:
            yield "".join(rng.choice(assigned) for _ in range(n))
        elif kind == 2:
            start = rng.choice(starts)
            yield "".join(chr(start + rng.randrange(0x100)) for _ in range(n))
        elif kind == 3:
            yield "".join(rng.choice(ascii_text) for _ in range(n))
        elif kind == 4:
            yield "".join(rng.choice(rng.choice((assigned, marks, spaces, ascii_text)))
                          for _ in range(n))
        elif kind == 5:
            yield "".join(rng.choice(words) + rng.choice(spaces) * rng.randint(0, 3)
                          for _ in range(n))
        elif kind == 6:
            yield "".join(rng.choice(rng.choice((special, words, spaces, marks)))
                          for _ in range(rng.randint(1, 10)))
        else:
            yield "".join(rng.choice((rng.choice("ab1 '\n\u00e9\u0301<>|_"), rng.choice(assigned)))
                          for _ in range(n))


def load_json(path):
    from tokenizers import Tokenizer
    try:
        return Tokenizer.from_file(path)
    except Exception:  # merges whose tokens contain spaces: the library reads them as pairs only
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
        vocab = data["model"]["vocab"]
        merges = []
        for merge in data["model"]["merges"]:
            cuts = [i for i, c in enumerate(merge) if c == " "]
            if len(cuts) > 1:
                cuts = [i for i in cuts if merge[:i] in vocab and merge[i + 1:] in vocab
                        and merge[:i] + merge[i + 1:] in vocab]
                print(f"merge {merge!r} read as {[(merge[:i], merge[i + 1:]) for i in cuts]}")
            assert len(cuts) == 1
            merges.append([merge[:cuts[0]], merge[cuts[0] + 1:]])
        data["model"]["merges"] = merges
        return Tokenizer.from_str(json.dumps(data))


class JsonReference:
    def __init__(self, path):
        self.tokenizer = load_json(path)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder()
        self.added = {i: t.content for i, t in added.items()}
        self.special = {i for i, t in added.items() if t.special}
        self.size = max(list(self.tokenizer.get_vocab(True).values())) + 1

    def encode(self, text):
        self.tokenizer.encode_special_tokens = True
        plain = self.tokenizer.encode(text).ids
        bare = self.tokenizer.encode(text, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = False
        parsed = self.tokenizer.encode(text).ids
        return {"plain": plain, "parsed": parsed, "bare": bare}

    def decode(self, ids):
        # "skipped" leaves special tokens out before decoding: the library itself keeps those whose
        # normalized spelling differs from their content.
        return {"decoded": self.tokenizer.decode(ids, skip_special_tokens=False),
                "skipped": self.tokenizer.decode([i for i in ids if i not in self.special],
                                                 skip_special_tokens=True)}


class SentencePieceReference:
    def __init__(self, path):
        import sentencepiece
        self.model = sentencepiece.SentencePieceProcessor(model_file=path)
        self.added = {i: self.model.id_to_piece(i) for i in range(self.model.vocab_size())
                      if self.model.is_control(i)}
        self.size = self.model.vocab_size()

    def encode(self, text):
        ids = self.model.encode(text)
        return {"plain": [self.model.bos_id()] + ids, "bare": ids}

    def decode(self, ids):
        return {"skipped": self.model.decode(ids)}


def shared_texts(paths):
    for path in paths:
        if path.endswith(".gz"):
            with gzip.open(path, "rt", encoding="utf-8") as f:
                lines = f.read().splitlines()
        else:
            with open(path, encoding="utf-8", newline="") as f:
                content = f.read()
            yield content
            lines = content.split("\n") if path.endswith("jsonl") else []
        for line in lines:
            if not line.strip():
                continue
            for value in json.loads(line).values():
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, str):
                        yield item


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("out")
    parser.add_argument("--random", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--sentencepiece", action="store_true", help="use tokenizer.model")
    args = parser.parse_args()
    path = os.path.join(args.model_dir, "tokenizer.json")
    if os.path.exists(path) and not args.sentencepiece:
        reference = JsonReference(path)
    else:
        reference = SentencePieceReference(os.path.join(args.model_dir, "tokenizer.model"))
    special = list(reference.added.values()) + ["<s>", "<|eot_id|>", "<0x41>", "▁", "Ġ"]
    rng = random.Random(args.seed + 1)
    with open(args.out, "w", encoding="utf-8") as out:
        def write(entry):
            out.write(json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n")

        for texts in (TRICKY, random_texts(args.random, args.seed, special),
                      shared_texts(args.text)):
            for text in texts:
                entry = {"text": text, **reference.encode(text)}
                write(entry)
                if rng.random() < 0.25 or texts is TRICKY:
                    ids = entry["plain"]
                    write({"ids": ids, **reference.decode(ids)})
        bytes_like = [i for i in range(min(reference.size, 300))]
        for i in range(args.random // 4):
            pool = (bytes_like, range(reference.size), list(reference.added) or [0])
            ids = [rng.choice(pool[rng.choice((0, 0, 1, 1, 1, 2))])
                   for _ in range(rng.randint(0, 20))]
            write({"ids": ids, **reference.decode(ids)})


if __name__ == "__main__":
    main()
