#include "comm/shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/shm/futex.h"

namespace phalanx::comm {
namespace {

constexpr uint64_t kMagic = 0x31786e6c61687000;  // layout version 1
constexpr char kMemfdName[] = "phalanx-comm";

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

uint64_t RandomNonce() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

absl::Status SystemError(absl::StatusCode code, const std::string& what, int error) {
  return absl::Status(code, absl::StrCat("shared memory: ", what, ": ", std::strerror(error)));
}

}  // namespace

int64_t Segment::TotalBytes(const SegmentConfig& config) {
  const int64_t n = config.members;
  int64_t bytes = sizeof(GroupHeader) + n * sizeof(MemberControl) + n * n * sizeof(RingControl);
  bytes = RoundUp(bytes, 4096) + n * n * config.ring_bytes;
  return RoundUp(bytes, 4096) + n * 2 * config.slot_bytes;
}

Segment::Segment(uint8_t* base, const SegmentConfig& config, bool shared, int fd)
    : base_(base), config_(config), shared_(shared), fd_(fd), total_bytes_(TotalBytes(config)) {
  const int64_t n = config.members;
  rings_at_ = sizeof(GroupHeader) + n * sizeof(MemberControl);
  ring_data_at_ = RoundUp(rings_at_ + n * n * sizeof(RingControl), 4096);
  slots_at_ = RoundUp(ring_data_at_ + n * n * config.ring_bytes, 4096);
}

Segment::~Segment() {
  Seal();
  munmap(base_, total_bytes_);
}

void Segment::Seal() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

// The kernel hands the pages out as zeros, which is the valid first state of every field, so only
// the constants are written. Pages that nobody touches cost nothing.
absl::StatusOr<std::shared_ptr<Segment>> Segment::CreatePrivate(const SegmentConfig& config) {
  void* base = mmap(nullptr, TotalBytes(config), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return SystemError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("cannot map ", TotalBytes(config), " bytes"), errno);
  }
  auto* header = static_cast<GroupHeader*>(base);
  header->magic = kMagic;
  header->config = config;
  return std::shared_ptr<Segment>(new Segment(static_cast<uint8_t*>(base), config, false, -1));
}

absl::StatusOr<std::shared_ptr<Segment>> Segment::CreateShared(const SegmentConfig& config) {
  const int64_t bytes = TotalBytes(config);
  const int fd = memfd_create(kMemfdName, MFD_CLOEXEC);
  if (fd < 0) return SystemError(absl::StatusCode::kResourceExhausted, "memfd_create", errno);
  if (ftruncate(fd, bytes) != 0) {
    const int error = errno;
    close(fd);
    return SystemError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("cannot size a memfd to ", bytes, " bytes"), error);
  }
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) {
    const int error = errno;
    close(fd);
    return SystemError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("cannot map ", bytes, " bytes"), error);
  }
  auto* header = static_cast<GroupHeader*>(base);
  header->nonce = RandomNonce();
  header->config = config;
  header->magic = kMagic;
  return std::shared_ptr<Segment>(new Segment(static_cast<uint8_t*>(base), config, true, fd));
}

SegmentTicket Segment::ticket() const {
  SegmentTicket ticket;
  ticket.pid = getpid();
  ticket.fd = fd_;
  ticket.nonce = reinterpret_cast<const GroupHeader*>(base_)->nonce;
  return ticket;
}

absl::StatusOr<std::shared_ptr<Segment>> Segment::Open(const SegmentTicket& ticket) {
  const std::string path = absl::StrCat("/proc/", ticket.pid, "/fd/", ticket.fd);
  const auto refuse = [&](const char* why) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared memory: ", path, " ", why,
                     "; ranks of one node must run as one user and see each other's processes"));
  };
  // In another PID namespace the same path may name anything: look before opening.
  char link[64] = {};
  if (readlink(path.c_str(), link, sizeof(link) - 1) < 0) return refuse("cannot be read");
  if (!absl::StartsWith(link, absl::StrCat("/memfd:", kMemfdName))) {
    return refuse("is not a segment of this program");
  }
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return refuse("cannot be opened");
  struct stat info;
  SegmentConfig config;
  uint64_t nonce = 0;
  uint64_t magic = 0;
  if (fstat(fd, &info) == 0 && info.st_size >= static_cast<off_t>(sizeof(GroupHeader))) {
    void* head = mmap(nullptr, sizeof(GroupHeader), PROT_READ, MAP_SHARED, fd, 0);
    if (head != MAP_FAILED) {
      const auto* header = static_cast<const GroupHeader*>(head);
      magic = header->magic;
      nonce = header->nonce;
      config = header->config;
      munmap(head, sizeof(GroupHeader));
    }
  }
  if (magic != kMagic || nonce != ticket.nonce || TotalBytes(config) != info.st_size) {
    close(fd);
    return refuse("is not the segment that was announced");
  }
  void* base =
      mmap(nullptr, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  const int error = errno;
  close(fd);
  if (base == MAP_FAILED) {
    return SystemError(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("cannot map ", info.st_size, " bytes"), error);
  }
  return std::shared_ptr<Segment>(new Segment(static_cast<uint8_t*>(base), config, true, -1));
}

void Segment::Abort(std::string_view reason) {
  GroupHeader& head = header();
  uint32_t expected = 0;
  if (!head.abort_state.compare_exchange_strong(expected, 1)) return;
  head.reason_length = static_cast<uint32_t>(std::min(reason.size(), sizeof(head.reason)));
  std::memcpy(head.reason, reason.data(), head.reason_length);
  head.abort_state.store(2);
  head.bell.fetch_add(1);
  FutexWakeAll(&head.bell, shared_);
  for (int i = 0; i < members(); ++i) {
    control(i).doorbell.fetch_add(1);
    FutexWakeAll(&control(i).doorbell, shared_);
  }
}

std::string Segment::abort_reason() {
  GroupHeader& head = header();
  // Between 1 and 2 lies one memcpy; a process killed just there leaves no reason.
  for (int turn = 0; turn < 100000 && head.abort_state.load() == 1; ++turn) SpinPause();
  if (head.abort_state.load() != 2) return "for a reason that was lost";
  return std::string(head.reason, std::min<size_t>(head.reason_length, sizeof(head.reason)));
}

}  // namespace phalanx::comm
