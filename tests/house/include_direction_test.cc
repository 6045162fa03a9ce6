// Reads every #include of the project and fails on one against the arrows of the design:
//   kernels <- comm <- runtime <- launcher, parallel <- runtime,
//   proto <- runtime/control, runtime/serving, launcher.

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx {
namespace {

namespace fs = std::filesystem;

// What each folder may include besides itself. A longer path is looked up first.
const std::map<std::string, std::set<std::string>>& Allowed() {
  static const auto* allowed = new std::map<std::string, std::set<std::string>>{
      {"kernels", {}},
      {"comm", {"kernels"}},
      {"parallel", {}},
      {"proto", {}},
      {"runtime", {"kernels", "comm", "parallel"}},
      {"runtime/control", {"kernels", "comm", "parallel", "runtime", "proto"}},
      {"runtime/serving", {"kernels", "comm", "parallel", "runtime", "proto"}},
      {"launcher", {"kernels", "comm", "parallel", "runtime", "proto"}},
  };
  return *allowed;
}

std::string TopFolder(const std::string& path) { return path.substr(0, path.find('/')); }

// The includes of `text` that point into the project, as (line, path).
std::vector<std::pair<int, std::string>> ProjectIncludes(const std::string& text) {
  static const std::regex include(R"re(^\s*#\s*include\s*["<]([^">]+)[">])re");
  std::vector<std::pair<int, std::string>> out;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::smatch match;
    if (!std::regex_search(line, match, include)) continue;
    const std::string path = match[1];
    if (Allowed().count(TopFolder(path)) != 0 || TopFolder(path) == "tests") {
      out.emplace_back(number, path);
    }
  }
  return out;
}

// Why `file` may not include `target`, or "".
std::string Violation(const std::string& file, const std::string& target) {
  const std::string from = TopFolder(file);
  const std::string to = TopFolder(target);
  if (from == to) return "";
  const std::set<std::string>* allowed = &Allowed().at(from);
  for (const auto& [folder, targets] : Allowed()) {
    if (folder.find('/') != std::string::npos && file.rfind(folder + "/", 0) == 0) {
      allowed = &targets;
    }
  }
  if (allowed->count(to) != 0) return "";
  return file + " includes " + target + ", but " + from + "/ may not include " + to + "/";
}

TEST(IncludeDirection, EveryIncludeFollowsTheArrows) {
  const fs::path root = PHALANX_SOURCE_DIR;
  int files = 0;
  for (const char* folder : {"kernels", "comm", "parallel", "proto", "runtime", "launcher"}) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      const std::set<std::string> sources = {".h", ".cc", ".inc", ".cu", ".cuh"};
      if (sources.count(extension) == 0) continue;
      ++files;
      std::ifstream in(entry.path());
      const std::string text((std::istreambuf_iterator<char>(in)), {});
      const std::string name = fs::relative(entry.path(), root);
      for (const auto& [line, target] : ProjectIncludes(text)) {
        EXPECT_EQ(Violation(name, target), "") << name << ":" << line;
      }
    }
  }
  EXPECT_GT(files, 50);
}

TEST(IncludeDirection, CatchesAnArrowTheWrongWay) {
  EXPECT_NE(Violation("kernels/kernels.h", "comm/communicator.h"), "");
  EXPECT_NE(Violation("parallel/mesh.h", "kernels/tensor.h"), "");
  EXPECT_NE(Violation("runtime/model/decoder.cc", "proto/phalanx/v1/control.pb.h"), "");
  EXPECT_NE(Violation("runtime/worker/worker.cc", "launcher/env.h"), "");
  EXPECT_EQ(Violation("runtime/control/codec.cc", "proto/phalanx/v1/control.pb.h"), "");
  EXPECT_EQ(Violation("comm/local/local.cc", "kernels/check.h"), "");
  EXPECT_EQ(ProjectIncludes("#include \"comm/communicator.h\"\n#include <vector>\n").size(), 1U);
}

TEST(Environment, IsReadInOneFileOnly) {
  const fs::path root = PHALANX_SOURCE_DIR;
  for (const char* folder : {"kernels", "comm", "parallel", "runtime", "launcher"}) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      const std::string name = fs::relative(entry.path(), root);
      if (name == "launcher/env.cc") continue;
      std::ifstream in(entry.path());
      const std::string text((std::istreambuf_iterator<char>(in)), {});
      EXPECT_EQ(text.find("getenv("), std::string::npos) << name << " reads the environment";
    }
  }
}

}  // namespace
}  // namespace phalanx
