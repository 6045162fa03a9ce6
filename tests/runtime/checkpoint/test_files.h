// Small model directories, made by the tests themselves.
#ifndef PHALANX_TESTS_RUNTIME_CHECKPOINT_TEST_FILES_H_
#define PHALANX_TESTS_RUNTIME_CHECKPOINT_TEST_FILES_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx::checkpoint {

// A directory that goes away with the test.
class TempDir {
 public:
  TempDir() {
    std::string pattern = testing::TempDir() + "/phalanx_checkpoint_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

inline std::string LittleEndian64(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
  return bytes;
}

// A file of this header text and these data bytes.
inline std::string Safetensors(const std::string& header, const std::string& data) {
  return LittleEndian64(header.size()) + header + data;
}

struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype = "F32";
  std::string bytes = {};  // "": zeros

  int64_t size() const {
    int64_t size = dtype == "F64"                          ? 8
                   : dtype == "F32"                        ? 4
                   : (dtype == "I8" || dtype == "F8_E4M3") ? 1
                                                           : 2;
    for (const int64_t dim : shape) size *= dim;
    return size;
  }
};

// A correct file of these tensors, its header padded to 8 bytes as the reference writer does.
inline std::string Safetensors(const std::vector<TestTensor>& tensors) {
  std::vector<std::string> entries;
  std::string data;
  for (const TestTensor& tensor : tensors) {
    const int64_t begin = static_cast<int64_t>(data.size());
    data += tensor.bytes.empty() ? std::string(tensor.size(), '\0') : tensor.bytes;
    entries.push_back(absl::StrCat("\"", tensor.name, "\":{\"dtype\":\"", tensor.dtype,
                                   "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                                   "],\"data_offsets\":[", begin, ",", data.size(), "]}"));
  }
  std::string header =
      absl::StrCat("{\"__metadata__\":{\"format\":\"pt\"},", absl::StrJoin(entries, ","), "}");
  while (header.size() % 8 != 0) header.push_back(' ');
  return Safetensors(header, data);
}

}  // namespace phalanx::checkpoint

#endif  // PHALANX_TESTS_RUNTIME_CHECKPOINT_TEST_FILES_H_
