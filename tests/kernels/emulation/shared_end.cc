// ... to here: linked behind them.
namespace phalanx::kernels::emulation {
extern char shared_end[64];
alignas(64) char shared_end[64];
}  // namespace phalanx::kernels::emulation
