#include "launcher/step_trace.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <system_error>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

class TraceFiles {
 public:
  TraceFiles(std::string directory, int replica, uint64_t epoch)
      : directory_(std::move(directory)), replica_(replica), epoch_(epoch) {}

  void Write(const worker::StepEvent& event) {
    absl::MutexLock lock(&mutex_);
    std::ofstream& file = files_[event.rank];
    const std::string path =
        absl::StrCat(directory_, "/replica-", replica_, ".rank-", event.rank, ".jsonl");
    if (!file.is_open()) file.open(path, std::ios::app);
    // Flushed: a rank may end without notice.
    file << absl::StrCat("{\"epoch\": ", epoch_, ", \"step\": ", event.step,
                         ", \"stage\": ", event.stage, ", \"event\": \"",
                         event.begin ? "begin" : "end",
                         "\", \"unix_ns\": ", absl::ToUnixNanos(event.time), "}\n")
         << std::flush;
    if (file.good() || failed_) return;
    failed_ = true;
    spdlog::warn("--step-trace: {} can't be written ({}); steps are missing there", path,
                 std::strerror(errno));
  }

 private:
  const std::string directory_;
  const int replica_;
  const uint64_t epoch_;
  absl::Mutex mutex_;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;                 // and said so
  std::map<int, std::ofstream> files_ ABSL_GUARDED_BY(mutex_);  // by rank
};

}  // namespace

absl::StatusOr<std::function<void(const worker::StepEvent&)>> TraceSteps(
    const std::string& directory, int replica, uint64_t epoch) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::NotFoundError(absl::StrCat("--step-trace ", directory, ": ", error.message()));
  }
  auto files = std::make_shared<TraceFiles>(directory, replica, epoch);
  return [files](const worker::StepEvent& event) { files->Write(event); };
}

}  // namespace phalanx::launcher
