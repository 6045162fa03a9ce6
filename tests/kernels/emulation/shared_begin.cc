// Linked before the kernels, whose shared memory, if it is static, lies from here ...
namespace phalanx::kernels::emulation {
extern char shared_begin[64];
alignas(64) char shared_begin[64];
}  // namespace phalanx::kernels::emulation
