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

// Waits until `pid` has ended or `timeout` has passed, without reaping it.
void WaitForEnd(pid_t pid, absl::Duration timeout) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return;
  pollfd wait = {fd, POLLIN, 0};
  poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  close(fd);
}

}  // namespace

std::vector<std::string> EnvironmentWith(const std::map<std::string, std::string>& changes) {
  std::vector<std::string> out;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string entry = *variable;
    if (changes.count(entry.substr(0, entry.find('='))) == 0) out.push_back(entry);
  }
  for (const auto& [name, value] : changes) out.push_back(absl::StrCat(name, "=", value));
  return out;
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  out.reserve(texts.size() + 1);
  for (const std::string& text : texts) out.push_back(const_cast<char*>(text.c_str()));
  out.push_back(nullptr);
  return out;
}

absl::StatusOr<std::unique_ptr<Process>> Process::Start(
    const std::vector<std::string>& arguments,
    const std::map<std::string, std::string>& environment) {
  const std::vector<std::string> variables = EnvironmentWith(environment);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(variables);

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
    signal(SIGPIPE, SIG_DFL);
    // mpirun wants a working directory, and this process's may have been removed.
    std::array<char, 4096> cwd;
    if (getcwd(cwd.data(), cwd.size()) == nullptr && errno == ENOENT) (void)!chdir("/");
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
      std::cerr.clear();  // where one line couldn't be written, the next may be
      std::cerr << line + "\n" << std::flush;
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
  kill(pid_, SIGTERM);
  if (Wait(grace)) return;
  kill(-pid_, SIGKILL);
  Reap(0);
}

}  // namespace phalanx::launcher
