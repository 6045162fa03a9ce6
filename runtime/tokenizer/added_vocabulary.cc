#include "runtime/tokenizer/added_vocabulary.h"

#include <algorithm>

#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {

void TokenTrie::Add(std::string_view token, int32_t value) {
  uint32_t node = 0;
  for (char c : token) {
    const auto byte = static_cast<uint8_t>(c);
    uint32_t child = 0;
    for (const auto& [label, target] : nodes_[node].edges) {
      if (label == byte) child = target;
    }
    if (child == 0) {
      child = static_cast<uint32_t>(nodes_.size());
      nodes_[node].edges.emplace_back(byte, child);
      nodes_.emplace_back();
    }
    node = child;
  }
  nodes_[node].value = value;
  starts_[static_cast<uint8_t>(token[0])] = true;
}

std::optional<std::pair<size_t, int32_t>> TokenTrie::LongestAt(std::string_view text,
                                                               size_t position) const {
  std::optional<std::pair<size_t, int32_t>> best;
  uint32_t node = 0;
  for (size_t i = position; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    uint32_t child = 0;
    for (const auto& [label, target] : nodes_[node].edges) {
      if (label == byte) {
        child = target;
        break;
      }
    }
    if (child == 0) break;
    node = child;
    if (nodes_[node].value >= 0) best = {i + 1, nodes_[node].value};
  }
  return best;
}

size_t TokenTrie::NextCandidate(std::string_view text, size_t position) const {
  while (position < text.size() && !starts_[static_cast<uint8_t>(text[position])]) ++position;
  return position;
}

absl::StatusOr<AddedVocabulary> AddedVocabulary::FromJson(const Json& json,
                                                          const std::string& where,
                                                          int32_t model_size,
                                                          const ModelLookup& model,
                                                          const Normalizer* normalizer) {
  if (!json.is_array()) {
    return absl::InvalidArgumentError(
        Concat(where, ": expected an array, found ", json.type_name()));
  }
  std::vector<AddedToken> tokens;
  StringMap<int32_t> ids;
  int32_t next_id = model_size;
  for (size_t i = 0; i < json.size(); ++i) {
    ObjectReader reader(json[i], Concat(where, "[", i, "]"));
    AddedToken token;
    token.content = reader.String("content");
    token.single_word = reader.Bool("single_word");
    token.lstrip = reader.Bool("lstrip");
    token.rstrip = reader.Bool("rstrip");
    token.normalized = reader.Bool("normalized");
    token.special = reader.Bool("special");
    const auto file_id = static_cast<int32_t>(reader.Int("id"));
    if (absl::Status s = reader.Finish(); !s.ok()) return s;
    if (token.content.empty()) continue;
    if (const auto seen = ids.find(token.content); seen != ids.end()) {
      token.id = seen->second;
    } else if (const auto id = model(token.content)) {
      token.id = *id;
    } else {
      token.id = next_id++;
    }
    if (token.id != file_id) {
      return absl::InvalidArgumentError(
          Concat(reader.where(), ": \"", token.content, "\" has the id ", file_id,
                 ", but the vocabulary and the tokens before it give it ", token.id,
                 "; added tokens must continue the vocabulary without gaps"));
    }
    ids.emplace(token.content, token.id);
    tokens.push_back(std::move(token));
  }
  return Create(std::move(tokens), where, normalizer);
}

absl::StatusOr<AddedVocabulary> AddedVocabulary::Create(std::vector<AddedToken> tokens,
                                                        const std::string& where,
                                                        const Normalizer* normalizer) {
  AddedVocabulary out;
  RegexScratch scratch;
  for (AddedToken& token : tokens) {
    token.normalized_content = token.content;
    if (token.normalized && normalizer != nullptr) {
      Segment segment{token.content, 0};
      if (absl::Status s = normalizer->Apply(&segment, &scratch); !s.ok()) return s;
      token.normalized_content = std::move(segment.text);
    }
    if (token.normalized_content.empty()) {
      return absl::InvalidArgumentError(
          Concat(where, ": the normalizer leaves nothing of \"", token.content, "\""));
    }
    const auto [it, inserted] = out.index_of_id_.emplace(token.id, out.tokens_.size());
    out.id_of_content_[token.content] = token.id;
    if (inserted) {
      out.tokens_.push_back(std::move(token));
    } else {
      out.tokens_[it->second] = std::move(token);  // the last one counts
    }
  }
  StringMap<int32_t> patterns[2];
  for (const AddedToken& token : out.tokens_) {
    const std::string& pattern = token.normalized ? token.normalized_content : token.content;
    const auto [it, inserted] = patterns[token.normalized ? 1 : 0].emplace(pattern, token.id);
    if (!inserted) {
      return absl::InvalidArgumentError(Concat(where, ": the tokens ", it->second, " and ",
                                               token.id, " both match the text \"", pattern, "\""));
    }
    (token.normalized ? out.normalized_ : out.raw_).Add(pattern, token.id);
  }
  return out;
}

std::vector<AddedSplit> AddedVocabulary::Split(std::string_view text, const TokenTrie& trie,
                                               bool parse_special) const {
  std::vector<AddedSplit> splits;
  size_t done = 0;
  for (size_t at = 0; !trie.empty();) {
    at = trie.NextCandidate(text, at);
    if (at == text.size()) break;
    const auto match = trie.LongestAt(text, at);
    if (!match) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = match->first;
    at = end;  // a rejected match is skipped whole, as the library does
    const AddedToken& token = *Find(match->second);
    if (token.special && !parse_special) continue;
    size_t edge = 0;
    if (token.single_word) {
      if (begin > 0 && IsRustWord(PreviousCodePoint(text, begin, &edge))) continue;
      edge = end;
      if (end < text.size() && IsRustWord(NextCodePoint(text, &edge))) continue;
    }
    if (token.lstrip) {
      while (begin > 0 && IsWhitespace(PreviousCodePoint(text, begin, &edge))) begin = edge;
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      for (edge = end; end < text.size(); end = edge) {
        if (!IsWhitespace(NextCodePoint(text, &edge))) break;
      }
    }
    if (done < begin) splits.push_back({-1, done, begin});
    splits.push_back({token.id, begin, end});
    done = end;
  }
  if (done != text.size()) splits.push_back({-1, done, text.size()});
  return splits;
}

std::optional<int32_t> AddedVocabulary::TokenToId(std::string_view content) const {
  const auto it = id_of_content_.find(content);
  if (it == id_of_content_.end()) return std::nullopt;
  return it->second;
}

const AddedToken* AddedVocabulary::Find(int32_t id) const {
  const auto it = index_of_id_.find(id);
  return it == index_of_id_.end() ? nullptr : &tokens_[it->second];
}

}  // namespace phalanx::tokenizer
