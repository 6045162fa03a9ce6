// `phalanx tokenize`: text on stdin to ids on stdout, and back with --decode.

#include <cstdint>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::launcher {
namespace {

struct TokenizeOptions {
  std::string model;
  bool decode = false;
  bool parse_special = false;
  bool no_special_tokens = false;
  bool skip_special_tokens = false;
};

absl::Status Tokenize(const TokenizeOptions& options) {
  auto tokenizer = tokenizer::Tokenizer::Load(options.model);
  if (!tokenizer.ok()) return tokenizer.status();
  const std::string input((std::istreambuf_iterator<char>(std::cin)), {});
  if (!options.decode) {
    tokenizer::EncodeOptions encode;
    encode.add_special_tokens = !options.no_special_tokens;
    encode.parse_special = options.parse_special;
    const auto ids = (*tokenizer)->Encode(input, encode);
    if (!ids.ok()) return ids.status();
    std::cout << absl::StrJoin(*ids, " ") << std::endl;
    return absl::OkStatus();
  }
  std::vector<int32_t> ids;
  for (const absl::string_view item :
       absl::StrSplit(input, absl::ByAnyChar(" ,\t\r\n[]"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(item, &id)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "\"", item, "\" on stdin is no token id; write ids apart with spaces or commas"));
    }
    ids.push_back(id);
  }
  const auto text = (*tokenizer)->Decode(ids, options.skip_special_tokens);
  if (!text.ok()) return text.status();
  std::cout << *text << std::flush;
  return absl::OkStatus();
}

}  // namespace

void AddTokenizeCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand("tokenize", "Text on stdin to token ids on stdout");
  auto options = std::make_shared<TokenizeOptions>();
  app->add_option("--model", options->model, "Directory with tokenizer.json or tokenizer.model")
      ->required();
  app->add_flag("--decode", options->decode, "Ids on stdin to text on stdout");
  app->add_flag("--parse-special", options->parse_special,
                "Read the text of special tokens as those tokens");
  app->add_flag("--no-special-tokens", options->no_special_tokens,
                "Don't add the tokenizer's own tokens (BOS)");
  app->add_flag("--skip-special-tokens", options->skip_special_tokens,
                "With --decode: leave special tokens out");
  app->callback([options, run] {
    *run = [options] {
      const absl::Status status = Tokenize(*options);
      return status.ok() ? kExitDone : Fail("tokenize", status);
    };
  });
}

}  // namespace phalanx::launcher
