// libsentencepiece.so carries and exports a protobuf of another version than ours. A program that
// holds both works only where neither can bind to the other; proto/CMakeLists.txt says how.

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "proto/phalanx/v1/inference.pb.h"
#include "runtime/serving/inference_server.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx {
namespace {

int AddName(dl_phdr_info* info, size_t, void* names) {
  static_cast<std::vector<std::string>*>(names)->push_back(info->dlpi_name);
  return 0;
}

// What the program shows to, or wants of, the libraries that are loaded with it.
int AddDynamicSymbols(dl_phdr_info* info, size_t, void* names) {
  const char* strings = nullptr;
  const ElfW(Sym)* symbol = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* entry =
        reinterpret_cast<const ElfW(Dyn)*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    for (; entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(entry->d_un.d_ptr);
      if (entry->d_tag == DT_SYMTAB) {
        symbol = reinterpret_cast<const ElfW(Sym)*>(entry->d_un.d_ptr);
      }
    }
  }
  // The linker puts the names right behind the symbols.
  for (; reinterpret_cast<const char*>(symbol) < strings; ++symbol) {
    static_cast<std::vector<std::string>*>(names)->push_back(strings + symbol->st_name);
  }
  return 1;  // the first is the program itself
}

bool Holds(const std::vector<std::string>& names, const std::string& part) {
  for (const std::string& name : names) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

TEST(PrivateProtobuf, NoLibraryBringsAnotherOfOurVersion) {
  std::vector<std::string> libraries;
  dl_iterate_phdr(AddName, &libraries);
  EXPECT_TRUE(Holds(libraries, "libsentencepiece"));
  EXPECT_TRUE(Holds(libraries, "libgrpc++"));
  EXPECT_FALSE(Holds(libraries, "libprotobuf"));
}

TEST(PrivateProtobuf, ProgramNeitherShowsNorTakesOne) {
  std::vector<std::string> symbols;
  dl_iterate_phdr(AddDynamicSymbols, &symbols);
  EXPECT_TRUE(Holds(symbols, "22SentencePieceProcessor"));
  for (const std::string& symbol : symbols) {
    EXPECT_EQ(symbol.find("6google8protobuf"), std::string::npos) << symbol;
  }
}

TEST(PrivateProtobuf, SentencePieceSeesItsOwn) {
  void* shown = dlsym(RTLD_DEFAULT, "_ZN6google8protobuf8internal13VerifyVersionEiiPKc");
  ASSERT_NE(shown, nullptr);
  Dl_info info;
  ASSERT_NE(dladdr(shown, &info), 0);
  EXPECT_NE(std::string(info.dli_fname).find("libsentencepiece"), std::string::npos)
      << info.dli_fname;
  EXPECT_NE(shown, reinterpret_cast<void*>(&google::protobuf::internal::VerifyVersion));
}

TEST(PrivateProtobuf, ServerAndSentencePieceWorkInOneProgram) {
  serving::InferenceServerOptions options;
  options.listen = "127.0.0.1:0";
  const auto server = serving::InferenceServer::Listen(options);
  ASSERT_TRUE(server.ok()) << server.status();

  v1::GenerateRequest request;
  request.set_text("text");
  request.mutable_sampling()->set_max_tokens(3);
  v1::GenerateRequest read;
  ASSERT_TRUE(read.ParseFromString(request.SerializeAsString()));
  EXPECT_EQ(read.DebugString(), request.DebugString());

  const auto tokenizer = tokenizer::Tokenizer::Load(std::string(PHALANX_SOURCE_DIR) +
                                                    "/tests/goldens/tokenizer/sentencepiece");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode("   ", {});
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, (std::vector<int32_t>{1, 295}));
}

}  // namespace
}  // namespace phalanx
