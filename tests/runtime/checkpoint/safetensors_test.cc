#include "runtime/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/runtime/checkpoint/test_files.h"

namespace phalanx::checkpoint {
namespace {

using testing::HasSubstr;

absl::Status Parse(const std::string& bytes) {
  return ParseSafetensorsHeader(bytes, static_cast<int64_t>(bytes.size()), "model.safetensors")
      .status();
}

// One error, of the right code, that names the file and says what is wrong.
void ExpectRefused(const std::string& bytes, const std::string& what) {
  const absl::Status status = Parse(bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
}

std::string Entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "F32") {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

// A header of these entries.
std::string Object(const std::vector<std::string>& entries) {
  return absl::StrCat("{", absl::StrJoin(entries, ","), "}");
}

TEST(SafetensorsTest, ReadsEveryTensorWhereItIs) {
  const std::string bytes =
      Safetensors({{"a", {2, 3}, "F32", ""}, {"b", {4}, "BF16", "12345678"}, {"c", {}, "F16", ""}});
  const auto header =
      ParseSafetensorsHeader(bytes, static_cast<int64_t>(bytes.size()), "model.safetensors");
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 3u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].shape, Shape({2, 3}));
  EXPECT_EQ(header->tensors[0].dtype, "F32");
  EXPECT_EQ(header->tensors[1].begin, 24);
  EXPECT_EQ(header->tensors[1].end, 32);
  EXPECT_EQ(bytes.substr(header->data_offset + 24, 8), "12345678");
  EXPECT_EQ(header->tensors[2].shape, Shape());
  EXPECT_EQ(header->tensors[2].end, 34);
}

TEST(SafetensorsTest, ReadsTensorsOutOfOrderAndEmptyOnes) {
  const std::string header = Object({Entry("b", "[1]", "[4,8]"), Entry("a", "[1]", "[0,4]"),
                                     Entry("none", "[0,7]", "[4,4]")}) +
                             "   ";
  EXPECT_TRUE(Parse(Safetensors(header, std::string(8, 'x'))).ok());
  EXPECT_TRUE(Parse(Safetensors("{}", "")).ok());
}

TEST(SafetensorsTest, RefusesHeaderLengthBeyondTheFile) {
  ExpectRefused(LittleEndian64(uint64_t{1} << 63) + "{}",
                "header length 9223372036854775808 exceeds the file's 10 bytes; the file is "
                "truncated or not safetensors");
  ExpectRefused(LittleEndian64(~uint64_t{0}) + "{}", "header length 18446744073709551615 exceeds");
  ExpectRefused(LittleEndian64(3) + "{}", "header length 3 exceeds the file's 10 bytes");
}

TEST(SafetensorsTest, RefusesHeaderLengthBeyondTheLimitOfTheFormat) {
  const auto header =
      ParseSafetensorsHeader(LittleEndian64(kMaxHeaderBytes + 1) + "{}", int64_t{1} << 40, "f");
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("limit of 100000000"));
}

TEST(SafetensorsTest, KnowsAPointerOfGitLfs) {
  ExpectRefused("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
                "git lfs pull");
}

TEST(SafetensorsTest, RefusesFilesWithoutHeader) {
  ExpectRefused("", "0 bytes");
  ExpectRefused("1234567", "7 bytes");
  ExpectRefused(LittleEndian64(0), "does not start with");
  ExpectRefused(Safetensors(" {}", ""), "does not start with");
  ExpectRefused(Safetensors("[]", ""), "does not start with");
}

TEST(SafetensorsTest, RefusesTruncatedData) {
  const std::string bytes = Safetensors({{"a", {2, 3}, "F32", ""}, {"b", {4}, "F32", ""}});
  for (const size_t cut : {size_t{1}, size_t{16}, size_t{17}, size_t{40}}) {
    ExpectRefused(bytes.substr(0, bytes.size() - cut), "the file is truncated, fetch it again");
  }
}

TEST(SafetensorsTest, RefusesBytesAfterTheLastTensor) {
  ExpectRefused(Safetensors({{"a", {2}, "F32", ""}}) + "x", "nothing after the last tensor");
}

TEST(SafetensorsTest, RefusesOverlapAndHoles) {
  ExpectRefused(Safetensors(Object({Entry("a", "[2]", "[0,8]"), Entry("b", "[2]", "[4,12]")}),
                            std::string(12, 'x')),
                "tensors \"a\" and \"b\" overlap: data_offsets [0, 8] and [4, 12]");
  ExpectRefused(Safetensors(Object({Entry("a", "[2]", "[0,8]"), Entry("b", "[2]", "[0,8]")}),
                            std::string(8, 'x')),
                "overlap");
  ExpectRefused(Safetensors(Object({Entry("a", "[1]", "[0,4]"), Entry("b", "[1]", "[8,12]")}),
                            std::string(12, 'x')),
                "bytes 4 to 8 of the data belong to no tensor");
  ExpectRefused(Safetensors(Object({Entry("a", "[1]", "[4,8]")}), std::string(8, 'x')),
                "bytes 0 to 4 of the data belong to no tensor");
}

TEST(SafetensorsTest, RefusesShapeTimesDtypeOverflow) {
  for (const char* shape :
       {"[4294967296,4294967296]", "[9223372036854775807,2]", "[9223372036854775807]",
        "[2147483648,2147483648,2147483648,0]", "[3037000500,3037000500]"}) {
    ExpectRefused(Safetensors(Object({Entry("a", shape, "[0,4]")}), "xxxx"), "overflows 64 bits");
  }
  // 2^64 / 4 + 1 elements of 4 bytes: 4 bytes modulo 2^64.
  ExpectRefused(Safetensors(Object({Entry("a", "[4611686018427387905]", "[0,4]")}), "xxxx"),
                "overflow");
  ExpectRefused(Safetensors(Object({Entry("a", "[18446744073709551616]", "[0,4]")}), "xxxx"),
                "expected");
  ExpectRefused(Safetensors(Object({Entry("a", "[18446744073709551615]", "[0,4]")}), "xxxx"),
                "expected");
}

TEST(SafetensorsTest, RefusesOffsetsThatContradictTheShape) {
  ExpectRefused(Safetensors(Object({Entry("a", "[2]", "[0,4]")}), "xxxx"),
                "which takes 8 bytes, but data_offsets [0, 4] enclose 4");
  ExpectRefused(Safetensors(Object({Entry("a", "[1]", "[4,0]")}), "xxxx"),
                "the end lies before the begin");
  ExpectRefused(Safetensors(Object({Entry("a", "[3]", "[0,1]", "F4")}), "x"), "takes 2 bytes");
  ExpectRefused(
      Safetensors(Object({Entry("a", "[1]", "[9223372036854775804,9223372036854775807]")}), "xxxx"),
      "enclose 3");
}

TEST(SafetensorsTest, RefusesFieldsOfTheWrongKind) {
  const auto file = [](const std::string& entry) {
    return Safetensors(absl::StrCat("{\"a\":", entry, "}"), "xxxx");
  };
  ExpectRefused(file("3"), "where an object");
  ExpectRefused(file("[]"), "where an object");
  ExpectRefused(file("\"F32\""), "where an object");
  ExpectRefused(file("null"), "where an object");
  ExpectRefused(file("{}"), "lacks one of");
  ExpectRefused(file("{\"dtype\":\"F32\",\"shape\":[1]}"), "lacks one of");
  ExpectRefused(file("{\"dtype\":\"F33\"}"), "unknown dtype \"F33\"");
  ExpectRefused(file("{\"dtype\":32}"), "where the name of a dtype");
  ExpectRefused(file("{\"dtype\":[]}"), "where the name of a dtype");
  ExpectRefused(file("{\"shape\":1}"), "where an array");
  ExpectRefused(file("{\"shape\":{}}"), "where an array");
  ExpectRefused(file("{\"shape\":[-1]}"), "number -1 where an integer in [0, 2^63)");
  ExpectRefused(file("{\"shape\":[1.0]}"), "where an integer");
  ExpectRefused(file("{\"shape\":[1e3]}"), "where an integer");
  ExpectRefused(file("{\"shape\":[[1]]}"), "where an integer");
  ExpectRefused(file("{\"shape\":[1,1,1,1,1,1,1,1,1]}"), "more than 8 dimensions");
  ExpectRefused(file("{\"data_offsets\":[0]}"), "exactly 2");
  ExpectRefused(file("{\"data_offsets\":[0,1,2]}"), "more than 2");
  ExpectRefused(file("{\"dtype\":\"F32\",\"dtype\":\"F32\"}"), "\"dtype\" twice");
  ExpectRefused(file("{\"strides\":[1]}"), "unknown field \"strides\"");
  ExpectRefused(Safetensors("{\"__metadata__\":{\"a\":1}}", ""), "a string in __metadata__");
  ExpectRefused(Safetensors("{\"__metadata__\":{\"a\":{}}}", ""), "a string in __metadata__");
  ExpectRefused(Safetensors("{\"__metadata__\":3}", ""), "where an object");
  ExpectRefused(Safetensors("{\"__metadata__\":{},\"__metadata__\":{}}", ""), "twice");
}

TEST(SafetensorsTest, RefusesDuplicateNames) {
  ExpectRefused(Safetensors(Object({Entry("a", "[1]", "[0,4]"), Entry("a", "[1]", "[4,8]")}),
                            std::string(8, 'x')),
                "tensor \"a\" is there twice");
}

TEST(SafetensorsTest, RefusesWhatIsNotJson) {
  ExpectRefused(Safetensors("{\"a\":", ""), "not valid JSON");
  ExpectRefused(Safetensors("{}x", ""), "not valid JSON");
  ExpectRefused(Safetensors(std::string("{}\0", 3), ""), "not valid JSON");
  ExpectRefused(Safetensors("{\"\xff\":1}", ""), "not valid JSON");
  ExpectRefused(Safetensors("{\"a\":{\"shape\":[1e999]}}", ""), "not valid JSON");
}

TEST(SafetensorsTest, RefusesDeepNestingWithoutExhaustingTheStack) {
  const std::string deep = absl::StrCat("{\"a\":", std::string(1'000'000, '['));
  ExpectRefused(Safetensors(deep, ""), "where an object");
  ExpectRefused(
      Safetensors(absl::StrCat("{\"a\":{\"shape\":", std::string(1'000'000, '['), "}}"), ""),
      "where an integer");
}

TEST(SafetensorsTest, EscapesNamesInMessages) {
  const absl::Status status = Parse(Safetensors(
      Object({Entry(absl::StrCat("x\\u0007", std::string(5000, 'y')), "[2]", "[0,4]")}), "xxxx"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("x\\x07yyy"));
  EXPECT_LT(status.message().size(), 500u);
}

TEST(SafetensorsTest, RefusesWhatIsNoRegularFile) {
  TempDir dir;
  std::filesystem::create_directory(dir.file("model.safetensors"));
  EXPECT_THAT(std::string(SafetensorsFile::Open(dir.file("model.safetensors")).status().message()),
              HasSubstr("not a regular file"));
  EXPECT_EQ(SafetensorsFile::Open(dir.file("missing")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(SafetensorsTest, OpensThroughSymbolicLinks) {
  TempDir dir;
  dir.Write("blob", Safetensors({{"a", {2}, "BF16", "abcd"}}));
  std::filesystem::create_symlink("blob", dir.file("model.safetensors"));
  const auto file = SafetensorsFile::Open(dir.file("model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorInfo* tensor = (*file)->Find("a");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*file)->data(*tensor)), 4), "abcd");
  EXPECT_EQ((*file)->Find("b"), nullptr);
}

TEST(SafetensorsTest, AdviceKeepsTheBytes) {
  TempDir dir;
  dir.Write("f", Safetensors({{"a", {40000}, "BF16", std::string(80000, 'z')}}));
  const auto file = SafetensorsFile::Open(dir.file("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  const uint8_t* data = (*file)->data(*(*file)->Find("a"));
  AdviseWillNeed(data, 80000);
  AdviseDone(data, 80000);
  AdviseDone(data, 1);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(data), 80000), std::string(80000, 'z'));
}

// Mutations of a good header: each is accepted or refused, and what is accepted lies in the file.
TEST(SafetensorsFuzzTest, MutatedHeadersNeverPointOutsideTheFile) {
  const std::string good = Safetensors({{"model.embed_tokens.weight", {16, 8}, "BF16", ""},
                                        {"model.norm.weight", {8}, "F32", ""},
                                        {"lm_head.weight", {16, 8}, "F16", ""}});
  const size_t header_end = good.size() - (256 + 32 + 256);
  const std::string alphabet = "{}[]\",:0123456789-.eE \\un\x80\xff\x01tfBF16";
  std::mt19937_64 random(20240607);
  int accepted = 0;
  for (int round = 0; round < 40000; ++round) {
    std::string bytes = good;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int edit = 0; edit < edits; ++edit) {
      const size_t at = random() % header_end;
      switch (random() % 5) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = alphabet[random() % alphabet.size()];
          break;
        case 2:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 3:
          bytes.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 4:
          bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 40));
          break;
      }
    }
    // Half of the time with a length that fits, to reach behind the first check.
    if (random() % 2 == 0 && bytes.size() > 8 + 544) {
      bytes.replace(0, 8, LittleEndian64(bytes.size() - 8 - 544));
    }
    const auto header =
        ParseSafetensorsHeader(bytes, static_cast<int64_t>(bytes.size()), "model.safetensors");
    if (!header.ok()) {
      ASSERT_FALSE(header.status().message().empty());
      continue;
    }
    ++accepted;
    for (const TensorInfo& tensor : header->tensors) {
      ASSERT_GE(tensor.begin, 0);
      ASSERT_LE(tensor.begin, tensor.end);
      ASSERT_LE(header->data_offset + tensor.end, static_cast<int64_t>(bytes.size()));
    }
  }
  // Renamed tensors and the like are good files: the loop reaches the end of the checks.
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace phalanx::checkpoint
