#include "kernels/dynamic_library.h"

#include <dlfcn.h>

#include <utility>

#include "absl/status/status.h"

namespace phalanx::kernels {

DynamicLibrary::DynamicLibrary(void* handle, std::string name, std::string prefix)
    : handle_(handle), name_(std::move(name)), prefix_(std::move(prefix)) {}

absl::StatusOr<DynamicLibrary> DynamicLibrary::Open(const std::string& name,
                                                    const std::string& prefix) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle != nullptr) return DynamicLibrary(handle, name, prefix);
  const char* error = dlerror();
  return absl::NotFoundError(error == nullptr ? "no reason given" : error);
}

void* DynamicLibrary::Symbol(const char* name) const {
  return dlsym(handle_, (prefix_ + name).c_str());
}

std::string DynamicLibrary::PathOf(const char* name) const {
  Dl_info info;
  const void* symbol = Symbol(name);
  const bool is_known =
      symbol != nullptr && dladdr(symbol, &info) != 0 && info.dli_fname != nullptr;
  return is_known ? info.dli_fname : name_;
}

}  // namespace phalanx::kernels
