// PHALANX_CHECK: for programmer errors only. Bad input is an absl::Status, never a check.
#ifndef PHALANX_KERNELS_CHECK_H_
#define PHALANX_KERNELS_CHECK_H_

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace phalanx::kernels::internal {

// Collects the message and aborts the process when it goes out of scope.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": check failed: " << condition << " ";
  }
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;
  [[noreturn]] ~CheckFailure() {
    std::cerr << message_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace phalanx::kernels::internal

// Open at its end, for what the caller adds with <<.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define PHALANX_CHECK(condition)                  \
  (condition)                                     \
      ? (void)0                                   \
      : ::phalanx::kernels::internal::Voidify() & \
            ::phalanx::kernels::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
// NOLINTEND(bugprone-macro-parentheses)

#endif  // PHALANX_KERNELS_CHECK_H_
