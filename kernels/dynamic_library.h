// Functions of a shared library that is looked for at run time: nothing is linked to it.
#ifndef PHALANX_KERNELS_DYNAMIC_LIBRARY_H_
#define PHALANX_KERNELS_DYNAMIC_LIBRARY_H_

#include <string>

#include "absl/status/statusor.h"

namespace phalanx::kernels {

class DynamicLibrary {
 public:
  // Loads what the dynamic linker finds under `name`, and keeps it until the process ends.
  // `prefix`: how its functions' names begin. NOT_FOUND with the linker's reason.
  static absl::StatusOr<DynamicLibrary> Open(const std::string& name, const std::string& prefix);

  // Sets `function` to the symbol of prefix and name, or to null. Whether there is one.
  template <typename Function>
  bool Find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(Symbol(name));
    return function != nullptr;
  }
  // As Find; missing() tells of the first that isn't there.
  template <typename Function>
  void Need(const char* name, Function& function) {
    if (!Find(name, function) && missing_.empty()) missing_ = prefix_ + name;
  }
  // With its prefix; empty: all that were needed are there.
  const std::string& missing() const { return missing_; }
  // The file that has the symbol, as far as that can be told; else the name that was asked for.
  std::string PathOf(const char* name) const;

 private:
  DynamicLibrary(void* handle, std::string name, std::string prefix);
  void* Symbol(const char* name) const;

  void* handle_;
  std::string name_;
  std::string prefix_;
  std::string missing_;
};

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_DYNAMIC_LIBRARY_H_
