#include "runtime/control/local_deaths.h"

#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

namespace phalanx::control {

LocalDeaths::LocalDeaths() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  host_ = name.data();
}

LocalDeaths::~LocalDeaths() {
  for (const auto& [who, process] : processes_) close(process);
  if (epoll_ >= 0) close(epoll_);
}

void LocalDeaths::Watch(int who, const std::string& host, int64_t pid) {
  if (epoll_ < 0 || host != host_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (const auto before = processes_.find(who); before != processes_.end()) {
    epoll_ctl(epoll_, EPOLL_CTL_DEL, before->second, nullptr);
    close(before->second);
    processes_.erase(before);
  }
  const int process = static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0));
  if (process < 0) return;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = static_cast<uint32_t>(who);
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, process, &event) != 0) {
    close(process);
    return;
  }
  processes_[who] = process;
}

int LocalDeaths::FirstOr(int who, absl::Duration patience) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (processes_.count(who) == 0) return who;
  if (!first_.has_value()) {
    epoll_event event{};
    const int milliseconds = static_cast<int>(absl::ToInt64Milliseconds(patience));
    if (epoll_wait(epoll_, &event, 1, milliseconds) == 1) first_ = static_cast<int>(event.data.u32);
  }
  return first_.value_or(who);
}

}  // namespace phalanx::control
