#include "launcher/progress_bar.h"

#include <unistd.h>

#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "launcher/machine.h"

namespace phalanx::launcher {

namespace {
constexpr int kWidth = 40;
}  // namespace

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(absl::Now()),
      last_(start_) {}

void ProgressBar::Update(int64_t done, int64_t total) {
  if (!terminal_ || total <= 0) return;
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  const bool complete = done >= total;
  if (!shown_ && (complete || now - start_ < absl::Seconds(1))) return;
  if (!complete && now - last_ < absl::Milliseconds(100)) return;
  last_ = now;
  shown_ = true;
  const int filled =
      static_cast<int>(static_cast<double>(done) / static_cast<double>(total) * kWidth);
  std::cerr << absl::StrFormat("\r%s [%s%s] %3d%%", label_, std::string(filled, '#'),
                               std::string(kWidth - filled, ' '), done * 100 / total)
            << (complete ? "\n" : "") << std::flush;
}

LoadingProgress::Bytes LoadingProgress::Sum() const {
  Bytes sum;
  for (const Bytes& part : parts_) {
    sum.done += part.done;
    sum.total += part.total;
  }
  return sum;
}

void LoadingProgress::Update(int replica, int64_t done, int64_t total) {
  absl::MutexLock lock(&mutex_);
  parts_[replica] = {done, total};
  const Bytes sum = Sum();
  bar_.Update(sum.done, sum.total);
}

std::string LoadingProgress::Message() const {
  absl::MutexLock lock(&mutex_);
  const Bytes sum = Sum();
  if (sum.total == 0) return "starting the ranks";
  return absl::StrCat(FormatBytes(sum.done), " of ", FormatBytes(sum.total), " loaded");
}

}  // namespace phalanx::launcher
