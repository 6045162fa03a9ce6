// Compiled with -mamx-tile -mamx-bf16.
#include <immintrin.h>

#include "kernels/bench/peak.h"

namespace phalanx::kernels::bench {
namespace {

void Run(int64_t iterations) {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t rest[15] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = 16;
  }
  alignas(64) uint16_t ones[16 * 32];
  for (uint16_t& value : ones) value = 0x3F80;
  // GCC 12 doesn't see that the instructions read memory, and may drop the stores to it.
  asm volatile("" : : "r"(&config), "r"(ones) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

constexpr PeakLoop kLoop = {"tdpbf16ps", 4 * 16 * 16 * 32 * 2, Run};

}  // namespace

const PeakLoop& PeakAmx() { return kLoop; }

}  // namespace phalanx::kernels::bench
