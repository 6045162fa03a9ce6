// Memory for packed weights: what was put in comes out, and nothing that is damaged does.
#include "runtime/model/weight_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace phalanx::model {
namespace {

constexpr char kKey[] = "0123456789abcdef0123456789abcdef";

// The bytes of a file, as a new memfd, sealed or not.
int CopyOf(const std::string& bytes, bool sealed) {
  const int fd = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  if (sealed) {
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
  }
  return fd;
}

class Arena : public ::testing::Test {
 protected:
  void SetUp() override {
    auto created = WeightArena::Create(kKey, int64_t{64} << 20);
    ASSERT_TRUE(created.ok()) << created.status();
    arena_ = *std::move(created);
    // More than a chunk, so that each part of the file has a digest of its own.
    for (const auto& [name, bytes] : pieces_) {
      absl::StatusOr<kernels::Buffer> piece = arena_->Take(name, bytes);
      ASSERT_TRUE(piece.ok()) << piece.status();
      EXPECT_EQ(reinterpret_cast<uintptr_t>(piece->data()) % 64, 0u);
      for (int64_t i = 0; i < bytes; ++i) piece->as<char>()[i] = static_cast<char>(i * 7 + bytes);
      buffers_.push_back(*std::move(piece));
    }
  }

  absl::Status Seal() { return arena_->Seal({{1, 2, "a slice"}, {3, 4, "another"}}, 2); }

  std::string Bytes() {
    std::string out(arena_->file_bytes(), '\0');
    EXPECT_EQ(pread(arena_->fd(), out.data(), out.size(), 0), static_cast<ssize_t>(out.size()));
    return out;
  }

  absl::Status MapOf(const std::string& bytes, const std::string& key = kKey) {
    return WeightArena::Map(CopyOf(bytes, true), key, 2).status();
  }

  const std::vector<std::pair<std::string, int64_t>> pieces_ = {
      {"first", 100}, {"large", (int64_t{9} << 20) + 5}, {"empty", 0}, {"last", 64}};
  std::shared_ptr<WeightArena> arena_;
  std::vector<kernels::Buffer> buffers_;
};

TEST_F(Arena, PiecesStayWhereTheyAreWhenItIsSealed) {
  ASSERT_TRUE(Seal().ok());
  for (size_t p = 0; p < pieces_.size(); ++p) {
    for (int64_t i = 0; i < pieces_[p].second; ++i) {
      ASSERT_EQ(buffers_[p].as<char>()[i], static_cast<char>(i * 7 + pieces_[p].second));
    }
  }
}

TEST_F(Arena, NobodyCanWriteToASealedOne) {
  ASSERT_TRUE(Seal().ok());
  EXPECT_EQ(pwrite(arena_->fd(), "x", 1, 0), -1);
  EXPECT_NE(ftruncate(arena_->fd(), 0), 0);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, arena_->fd(), 0), MAP_FAILED);
}

TEST_F(Arena, AMappedOneGivesThePiecesInOrderAndOutlivesTheFirst) {
  ASSERT_TRUE(Seal().ok());
  auto mapped = WeightArena::Map(dup(arena_->fd()), kKey, 2);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  buffers_.clear();
  arena_.reset();
  ASSERT_EQ((*mapped)->digests().size(), 2u);
  EXPECT_EQ((*mapped)->digests()[1].key, 3u);
  EXPECT_EQ((*mapped)->digests()[1].digest, 4u);
  EXPECT_EQ((*mapped)->digests()[1].name, "another");
  std::vector<kernels::Buffer> pieces;
  for (const auto& [name, bytes] : pieces_) {
    EXPECT_FALSE((*mapped)->exhausted());
    absl::StatusOr<kernels::Buffer> piece = (*mapped)->Take(name, bytes);
    ASSERT_TRUE(piece.ok()) << piece.status();
    pieces.push_back(*std::move(piece));
  }
  EXPECT_TRUE((*mapped)->exhausted());
  EXPECT_TRUE(absl::IsInvalidArgument((*mapped)->Take("more", 1).status()));
  mapped->reset();  // pieces hold the memory
  for (size_t p = 0; p < pieces_.size(); ++p) {
    for (int64_t i = 0; i < pieces_[p].second; ++i) {
      ASSERT_EQ(pieces[p].as<char>()[i], static_cast<char>(i * 7 + pieces_[p].second));
    }
  }
}

TEST_F(Arena, APieceOfAnotherNameOrSizeIsRefused) {
  ASSERT_TRUE(Seal().ok());
  auto mapped = WeightArena::Map(dup(arena_->fd()), kKey, 1);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_TRUE(absl::IsInvalidArgument((*mapped)->Take("second", 100).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*mapped)->Take("first", 101).status()));
  EXPECT_TRUE((*mapped)->Take("first", 100).ok());
}

TEST_F(Arena, AnyFlippedByteOfWhatCountsIsFound) {
  ASSERT_TRUE(Seal().ok());
  const std::string whole = Bytes();
  ASSERT_TRUE(MapOf(whole).ok());
  // Header; pieces in either chunk; what follows the pieces, where the index is.
  int64_t index = 0;
  std::memcpy(&index, whole.data() + 72, sizeof(index));  // pieces_end
  for (const int64_t at :
       {int64_t{0}, int64_t{9}, int64_t{73}, int64_t{81}, int64_t{89}, int64_t{97}, int64_t{4096},
        int64_t{4200}, int64_t{5} << 20, index - 65, index, index + 40}) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_TRUE(absl::IsInvalidArgument(MapOf(damaged))) << "byte " << at;
  }
}

TEST_F(Arena, AnIncompleteOneIsRefused) {
  const std::string unfinished = Bytes();
  EXPECT_TRUE(absl::IsInvalidArgument(MapOf(unfinished)));
  ASSERT_TRUE(Seal().ok());
  const std::string whole = Bytes();
  for (const size_t size : {size_t{0}, size_t{100}, size_t{4096}, size_t{5} << 20}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MapOf(whole.substr(0, size)))) << size;
  }
}

TEST_F(Arena, AnUnsealedOneIsRefused) {
  ASSERT_TRUE(Seal().ok());
  const absl::Status status = WeightArena::Map(CopyOf(Bytes(), false), kKey, 1).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST_F(Arena, AnotherKeyIsRefused) {
  ASSERT_TRUE(Seal().ok());
  EXPECT_TRUE(absl::IsInvalidArgument(MapOf(Bytes(), "another")));
}

TEST(ArenaLimits, MoreThanWasReservedIsResourceExhausted) {
  auto arena = WeightArena::Create("k", 1000);
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_TRUE((*arena)->Take("some", 1000).ok());
  EXPECT_TRUE(absl::IsResourceExhausted((*arena)->Take("too many", int64_t{4} << 20).status()));
}

}  // namespace
}  // namespace phalanx::model
