#!/usr/bin/env python3
"""Writes runtime/tokenizer/unicode_tables.cc.

Hugging Face `tokenizers` mixes several Unicode versions: Oniguruma's character classes (regex), the
Rust standard library (numeric, lowercase), and older crates (punctuation, combining marks). Equal
token ids need equal tables, so they are measured from the library itself, code point by code point.

    python3 tests/goldens/tokenizer_unicode_tables.py > runtime/tokenizer/unicode_tables.cc
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = ("Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp "
              "Cc Cf Co").split()
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
SCRIPTS = """Adlam Ahom Arabic Armenian Balinese Bengali Bopomofo Buginese Cham Cherokee Common
Coptic Cuneiform Cyrillic Devanagari Dives_Akuru Egyptian_Hieroglyphs Ethiopic Garay Georgian Gothic
Grantha Greek Gujarati Gurmukhi Gurung_Khema Han Hangul Hebrew Hiragana Inherited Javanese Kaithi
Kannada Katakana Kawi Khitan_Small_Script Khmer Khojki Kirat_Rai Lao Latin Malayalam Mongolian Myanmar
Nag_Mundari Nushu Ol_Onal Oriya Osage Runic Sinhala Sunuwar Syriac Tamil Tangut Telugu Thai Tibetan
Todhri Toto Tulu_Tigalari Vithkuqi""".split()


def regex_set(pattern, universe=ALL):
    """Code points of `universe` that Oniguruma's `pattern` matches."""
    replace = normalizers.Replace(Regex(pattern), "")
    out = set(universe)
    for i in range(0, len(universe), 4096):
        text = "".join(map(chr, universe[i:i + 4096]))
        out -= set(map(ord, replace.normalize_str(text)))
    return out


def isolated_set(pre_tokenizer):
    """Code points that a char-predicate pre-tokenizer cuts out of a run of 'x'."""
    out = set()
    for i in range(0, len(ALL), 2048):
        text = "x" + "x".join(map(chr, ALL[i:i + 2048])) + "x"
        out |= {ord(t) for t, _ in pre_tokenizer.pre_tokenize_str(text) if len(t) == 1 and t != "x"}
    return out


def rust_word_set():
    out = set()
    pre_tokenizer = pre_tokenizers.Whitespace()
    for i in range(0, len(ALL), 1024):
        text = " ".join("x" + chr(c) + "x" for c in ALL[i:i + 1024])
        for token, _ in pre_tokenizer.pre_tokenize_str(text):
            if len(token) == 3 and token[0] == "x" and token[2] == "x":
                out.add(ord(token[1]))
    return out


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def emit(items, per_line):
    for i in range(0, len(items), per_line):
        print("    " + " ".join(items[i:i + per_line]))


def emit_ranges(name, comment, points):
    print(f"// {comment}")
    print(f"const CodePointRange {name}[] = {{")
    emit([f"{{0x{a:x}, 0x{b:x}}}," for a, b in ranges(points)] or ["{1, 0},"], 5)
    print("};")
    print(f"const size_t {name}Size = sizeof({name}) / sizeof({name}[0]);\n")


def main():
    category = [0] * 0x110000
    by_name = {}
    for index, name in enumerate(CATEGORIES):
        if name == "Cn":
            continue
        by_name[name] = regex_set(r"\p{%s}" % name)
        for c in by_name[name]:
            category[c] = index
    for c in range(0xD800, 0xE000):
        category[c] = 0
    union = lambda names: set().union(*[by_name[n] for n in names.split()])
    marks = union("Mn Mc Me")

    print("// Made by tests/goldens/tokenizer_unicode_tables.py from Hugging Face tokenizers "
          f"{tokenizers.__version__}.")
    print('#include "runtime/tokenizer/unicode.h"\n')
    print("// clang-format off")
    print("namespace phalanx::tokenizer::unicode_tables {\n")
    print("// Each entry: first code point << 8 | index into the general categories\n"
          "// (" + " ".join(CATEGORIES) + "); it holds up to the next entry's first code point.")
    print("const uint32_t kGeneralCategory[] = {")
    runs, last = [], None
    for c in range(0x110000):
        if category[c] != last:
            last = category[c]
            runs.append(f"0x{c << 8 | last:x},")
    emit(runs, 9)
    print("};\nconst size_t kGeneralCategorySize = sizeof(kGeneralCategory) / sizeof(uint32_t);\n")

    word = regex_set(r"\w")
    emit_ranges("kRegexWordExtra", r"Oniguruma's \w beyond L, M, Nd, Nl and Pc.",
                word - union("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl Pc"))
    alpha = regex_set(r"[[:alpha:]]")
    emit_ranges("kRegexAlphaExtra", "Oniguruma's [[:alpha:]] beyond L and Nl.",
                alpha - union("Lu Ll Lt Lm Lo Nl"))
    emit_ranges("kRegexUpperExtra", "Oniguruma's [[:upper:]] beyond Lu.",
                regex_set("[[:upper:]]") - by_name["Lu"])
    emit_ranges("kRegexLowerExtra", "Oniguruma's [[:lower:]] beyond Ll.",
                regex_set("[[:lower:]]") - by_name["Ll"])
    rust_word = rust_word_set()
    emit_ranges("kRustWordExtra", r"The Rust regex crate's \w beyond Oniguruma's.",
                rust_word - word)
    emit_ranges("kRustWordMissing", r"Oniguruma's \w beyond the Rust regex crate's.",
                word - rust_word)
    numbers = union("Nd Nl No")
    numeric = isolated_set(pre_tokenizers.Digits(individual_digits=False))
    emit_ranges("kNumericExtra", "Rust's char::is_numeric beyond N.", numeric - numbers)
    punctuation = isolated_set(pre_tokenizers.Punctuation("isolated"))
    p = union("Pc Pd Ps Pe Pi Pf Po")
    emit_ranges("kPunctuationExtra", "The punctuation pre-tokenizers' characters beyond P.",
                punctuation - p)
    emit_ranges("kPunctuationMissing", "P beyond the punctuation pre-tokenizers' characters.",
                p - punctuation)
    strip = normalizers.StripAccents()
    combining = {c for c in ALL if strip.normalize_str("a" + chr(c)) == "a"}
    emit_ranges("kCombiningExtra", "StripAccents' combining marks beyond M.", combining - marks)
    emit_ranges("kCombiningMissing", "M beyond StripAccents' combining marks.",
                marks - combining)

    lowercase = normalizers.Lowercase()
    print("// Lowercase mappings (one code point each) newer than Unicode 14.")
    print("const LowercasePair kLowercaseNew[] = {")
    pairs = []
    for c in ALL:
        low = lowercase.normalize_str(chr(c))
        if low != chr(c).lower():
            assert len(low) == 1, hex(c)
            pairs.append(f"{{0x{c:x}, 0x{ord(low):x}}},")
    emit(pairs, 5)
    print("};\nconst size_t kLowercaseNewSize = sizeof(kLowercaseNew) / sizeof(LowercasePair);\n")

    print("// Scripts of the code points newer than Unicode 14.")
    print("const ScriptRange kScriptNew[] = {")
    fresh = [c for c in ALL if category[c] and unicodedata.category(chr(c)) == "Cn"]
    rows, left = [], set(fresh)
    for script in SCRIPTS:
        points = regex_set(r"\p{%s}" % script, fresh)
        left -= points
        rows += [f'{{0x{a:x}, 0x{b:x}, "{script}"}},' for a, b in ranges(points)]
    print(f"code points without a script: {sorted(map(hex, left))}", file=sys.stderr)
    emit(rows, 2)
    print("};\nconst size_t kScriptNewSize = sizeof(kScriptNew) / sizeof(ScriptRange);\n")
    print("}  // namespace phalanx::tokenizer::unicode_tables")
    print("// clang-format on")


if __name__ == "__main__":
    main()
