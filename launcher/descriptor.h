// A file descriptor with an owner.
#ifndef PHALANX_LAUNCHER_DESCRIPTOR_H_
#define PHALANX_LAUNCHER_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace phalanx::launcher {

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = other.Release();
    }
    return *this;
  }
  ~Descriptor() { Close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  void Close() {
    if (fd_ >= 0) close(fd_);
  }
  int fd_;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_DESCRIPTOR_H_
