// Polynomials: fdlibm (Sun Microsystems, 1993), k_sin.c, k_cos.c, e_exp.c, e_log.c.
#include "kernels/rope.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "absl/types/span.h"
#include "kernels/check.h"

namespace phalanx::kernels {
namespace {

constexpr double kLn2High = 6.93147180369123816490e-01;  // the low 32 bits are zero
constexpr double kLn2Low = 1.90821492927058770002e-10;

// Rounded to the nearest integer, |x| < 2^51.
double Round(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + kMagic) - kMagic;
}

// 2^n for a normal result.
double PowerOfTwo(int64_t n) {
  return __builtin_bit_cast(double, static_cast<uint64_t>(n + 1023) << 52);
}

}  // namespace

void SinCos(double x, double* sin, double* cos) {
  // x = n * pi / 2 + r. Pi / 2 in parts of 30, 30 and 53 bits: n has at most 23, so the first two
  // products are exact.
  constexpr double kHalfPi1 = 0x1.921fb54p+0, kHalfPi2 = 0x1.10b46118p-30;
  constexpr double kHalfPi3 = 0x1.313198a2e0370p-61;
  const double n = Round(x * 6.36619772367581382433e-01);
  const double r = ((x - n * kHalfPi1) - n * kHalfPi2) - n * kHalfPi3;
  const double z = r * r;
  const double sine_tail =
      8.33333333332248946124e-03 +
      z * (-1.98412698298579493134e-04 +
           z * (2.75573137070700676789e-06 +
                z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)));
  const double sine = r + (z * r) * (-1.66666666666666324348e-01 + z * sine_tail);
  const double cosine_tail =
      z * (4.16666666666666019037e-02 +
           z * (-1.38888888888741095749e-03 +
                z * (2.48015872894767294178e-05 +
                     z * (-2.75573143513906633035e-07 +
                          z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  const double half = 0.5 * z;
  const double whole = 1.0 - half;
  const double cosine = whole + (((1.0 - whole) - half) + z * cosine_tail);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sin = sine;
      *cos = cosine;
      break;
    case 1:
      *sin = cosine;
      *cos = -sine;
      break;
    case 2:
      *sin = -sine;
      *cos = -cosine;
      break;
    default:
      *sin = -cosine;
      *cos = sine;
      break;
  }
}

double ExpDouble(double x) {
  const double n = Round(x * 1.44269504088896338700e+00);
  const double high = x - n * kLn2High;
  const double low = n * kLn2Low;
  const double r = high - low;
  const double t = r * r;
  const double c =
      r - t * (1.66666666666666019037e-01 +
               t * (-2.77777777770155933842e-03 +
                    t * (6.61375632143793436117e-05 +
                         t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
  const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  return y * PowerOfTwo(static_cast<int64_t>(n));
}

double LogDouble(double x) {
  // x = m * 2^k with m in [sqrt(1/2), sqrt(2)).
  const int64_t bits = __builtin_bit_cast(int64_t, x);
  const int64_t k = (bits - 0x3fe6a09e667f3bcd) >> 52;
  const double f = __builtin_bit_cast(double, bits - k * (int64_t{1} << 52)) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double even = w * (3.999999999940941908e-01 +
                           w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 +
                          w * (2.857142874366239149e-01 +
                               w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double square = 0.5 * f * f;
  const double n = static_cast<double>(k);
  return n * kLn2High - ((square - (s * (square + (even + odd)) + n * kLn2Low)) - f);
}

double PowDouble(double base, double exponent) { return ExpDouble(exponent * LogDouble(base)); }

void RopeRows(absl::Span<const float> inv_freq, absl::Span<const int32_t> positions,
              float attention_factor, float* cos, float* sin) {
  for (const int32_t position : positions) {
    PHALANX_CHECK(position >= 0 && position < (1 << 23))
        << "position " << position << "; rotary embeddings reach to 8388607";
    for (const float frequency : inv_freq) {
      const float angle = static_cast<float>(position) * frequency;
      double sine, cosine;
      SinCos(static_cast<double>(angle), &sine, &cosine);
      *cos++ = static_cast<float>(cosine) * attention_factor;
      *sin++ = static_cast<float>(sine) * attention_factor;
    }
  }
}

RopeTables BuildRopeTables(absl::Span<const float> inv_freq, int64_t positions,
                           float attention_factor) {
  PHALANX_CHECK(positions >= 0 && positions <= (int64_t{1} << 23))
      << positions << " positions; a rotary table holds at most 8388608";
  RopeTables tables;
  tables.cos.resize(positions * inv_freq.size());
  tables.sin.resize(positions * inv_freq.size());
  std::vector<int32_t> rows(positions);
  std::iota(rows.begin(), rows.end(), 0);
  RopeRows(inv_freq, rows, attention_factor, tables.cos.data(), tables.sin.data());
  return tables;
}

}  // namespace phalanx::kernels
