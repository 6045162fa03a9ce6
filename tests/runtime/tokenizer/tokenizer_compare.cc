// phalanx_tokenizer_compare MODEL_DIR EXPECTED.jsonl
//
// Compares a tokenizer with the reference's answers (tests/goldens/tokenizer_oracle.py), the
// streamed text included, and prints the first differences and their number. Exit 1 if any.
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace {

using phalanx::tokenizer::EncodeOptions;
using phalanx::tokenizer::Tokenizer;

class Report {
 public:
  void Difference(int64_t line, const std::string& what, const nlohmann::json& got,
                  const nlohmann::json& expected, const nlohmann::json& text) {
    if (++differences_ > 10) return;
    const auto shorten = [](const nlohmann::json& json) {
      return json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 400);
    };
    std::cout << "line " << line << ": " << what << " differ\n  text     " << shorten(text)
              << "\n  got      " << shorten(got) << "\n  expected " << shorten(expected) << "\n";
  }
  int64_t differences() const { return differences_; }

 private:
  int64_t differences_ = 0;
};

std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  const auto stream = tokenizer.NewStreamDecoder(skip);
  std::string text;
  for (int32_t id : ids) text += stream->Next(id);
  return text + stream->Flush();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: phalanx_tokenizer_compare MODEL_DIR EXPECTED.jsonl\n";
    return 2;
  }
  const auto tokenizer = Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 2;
  }
  std::ifstream in(argv[2]);
  Report report;
  int64_t lines = 0;
  int64_t ids = 0;
  for (std::string line; std::getline(in, line);) {
    ++lines;
    const auto expected = nlohmann::json::parse(line);
    struct Field {
      const char* name;
      EncodeOptions options;
    };
    // "plain": special tokens' spellings are text; "parsed": they are tokens.
    for (const Field& field : {Field{"plain", {true, false}}, Field{"parsed", {true, true}},
                               Field{"bare", {false, false}}}) {
      if (!expected.contains(field.name)) continue;
      const auto text = expected["text"].get<std::string>();
      const auto got = (*tokenizer)->Encode(text, field.options);
      if (!got.ok()) {
        report.Difference(lines, field.name, got.status().ToString(), expected[field.name], text);
        continue;
      }
      ids += static_cast<int64_t>(got->size());
      if (nlohmann::json(*got) != expected[field.name]) {
        report.Difference(lines, field.name, *got, expected[field.name], text);
      }
    }
    if (!expected.contains("ids")) continue;
    const auto given = expected["ids"].get<std::vector<int32_t>>();
    for (const bool skip : {false, true}) {
      const char* name = skip ? "skipped" : "decoded";
      if (!expected.contains(name)) continue;
      const auto text = (*tokenizer)->Decode(given, skip);
      if (!text.ok() || *text != expected[name].get<std::string>()) {
        report.Difference(lines, name, text.ok() ? *text : text.status().ToString(), expected[name],
                          expected["ids"]);
      } else if (Streamed(**tokenizer, given, skip) != *text) {
        report.Difference(lines, "streamed", Streamed(**tokenizer, given, skip), *text,
                          expected["ids"]);
      }
    }
  }
  std::cout << lines << " lines, " << ids << " ids, " << report.differences() << " differences\n";
  return report.differences() == 0 ? 0 : 1;
}
