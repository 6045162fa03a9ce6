#include "launcher/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace phalanx::launcher {
namespace {

constexpr size_t kKeptLines = 20;

// Waits until `pid` has ended or `timeout` has passed, without reaping it.
void WaitForEnd(pid_t pid, absl::Duration timeout) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return;
  pollfd wait = {fd, POLLIN, 0};
  poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(
    const std::vector<std::string>& arguments,
    const std::map<std::string, std::string>& environment) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string entry = *variable;
    if (environment.count(entry.substr(0, entry.find('='))) == 0) variables.push_back(entry);
  }
  for (const auto& [name, value] : environment) {
    variables.push_back(absl::StrCat(name, "=", value));
  }
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::vector<char*> envp;
  envp.reserve(variables.size() + 1);
  for (const std::string& variable : variables) envp.push_back(const_cast<char*>(variable.c_str()));
  envp.push_back(nullptr);

  std::array<int, 2> output;
  std::array<int, 2> failure;  // tells whether exec failed: closed by a successful one
  if (pipe2(output.data(), O_CLOEXEC) != 0 || pipe2(failure.data(), O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("pipe: ", strerror(errno)));
  }
  const pid_t pid = fork();
  if (pid < 0) return absl::ResourceExhaustedError(absl::StrCat("fork: ", strerror(errno)));
  if (pid == 0) {
    setpgid(0, 0);
    dup2(output[1], STDOUT_FILENO);
    dup2(output[1], STDERR_FILENO);
    const int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execvpe(argv[0], argv.data(), envp.data());
    const int error = errno;
    (void)!write(failure[1], &error, sizeof(error));
    _exit(127);
  }
  setpgid(pid, pid);
  close(output[1]);
  close(failure[1]);
  int error = 0;
  const ssize_t got = read(failure[0], &error, sizeof(error));
  close(failure[0]);
  if (got > 0) {
    close(output[0]);
    waitpid(pid, nullptr, 0);
    return absl::NotFoundError(absl::StrCat("can't start ", arguments[0], ": ", strerror(error)));
  }
  return std::unique_ptr<Process>(new Process(pid, output[0]));
}

Process::Process(pid_t pid, int output)
    : pid_(pid), forwarder_([this, output] { ForwardOutput(output); }) {}

Process::~Process() {
  Kill(absl::Seconds(2));
  forwarder_.join();
}

void Process::ForwardOutput(int output) {
  std::string pending;
  std::array<char, 4096> chunk;
  while (true) {
    const ssize_t got = read(output, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    pending.append(chunk.data(), got);
    for (size_t end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
      const std::string line = pending.substr(0, end);
      pending.erase(0, end + 1);
      std::cerr << line + "\n" << std::flush;
      absl::MutexLock lock(&mutex_);
      if (!line.empty()) last_lines_.push_back(line);
      if (last_lines_.size() > kKeptLines) last_lines_.pop_front();
    }
  }
  close(output);
}

void Process::Reap(int flags) {
  if (reaped_) return;
  if (waitpid(pid_, &wait_status_, flags) == pid_) reaped_ = true;
}

std::optional<std::string> Process::Ended() {
  Reap(WNOHANG);
  if (!reaped_) return std::nullopt;
  if (WIFSIGNALED(wait_status_)) {
    const int signal = WTERMSIG(wait_status_);
    return absl::StrCat("was ended by signal ", signal, " (", strsignal(signal), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(wait_status_));
}

bool Process::Succeeded() {
  Reap(WNOHANG);
  return reaped_ && WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == 0;
}

std::vector<std::string> Process::LastLines() const {
  absl::MutexLock lock(&mutex_);
  return {last_lines_.begin(), last_lines_.end()};
}

bool Process::Wait(absl::Duration timeout) {
  Reap(WNOHANG);
  if (reaped_) return true;
  WaitForEnd(pid_, timeout);
  Reap(WNOHANG);
  return reaped_;
}

void Process::Kill(absl::Duration grace) {
  Reap(WNOHANG);
  if (reaped_) return;
  kill(-pid_, SIGTERM);
  if (Wait(grace)) return;
  kill(-pid_, SIGKILL);
  Reap(0);
}

}  // namespace phalanx::launcher
