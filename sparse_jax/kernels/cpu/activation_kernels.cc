// The forms of the activations, written so that the compiler vectorises the loops.
#include "activation_kernels.h"

#include <string.h>

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// max |x| of non-negative floats orders as their bits do; NaN and infinity come out on
// top, so that they are never lost.
float max_magnitude(const float* values, int64_t n) {
  int32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7fffffff;
    top = bits > top ? bits : top;
  }
  float magnitude;
  memcpy(&magnitude, &top, sizeof magnitude);
  return magnitude;
}

// Adding and taking away 1.5 * 2^23 rounds a float of at most 2^22 to the nearest
// integer, half to even.
constexpr float kRound = 12582912.0f;

}  // namespace

float quantize_row(const float* values, int64_t n, int8_t* codes, uint8_t* biased,
                   int32_t* sums) {
  const float top = max_magnitude(values, n);
  const bool finite = top - top == 0.0f;
  const bool zero = finite && top < 1.0e-30f;
  const float inverse = zero || !finite ? 0.0f : 127.0f / top;
  for (int64_t first = 0; first < n; first += kSumInputs) {
    int32_t sum = 0;
    for (int64_t i = first; i < first + kSumInputs; ++i) {
      // The integer is in the low bits of the mantissa: no conversion that traps or
      // differs where the value is not finite.
      const float rounded = values[i] * inverse + kRound;
      int32_t bits;
      memcpy(&bits, &rounded, sizeof bits);
      const int32_t code = finite ? bits - 0x4b400000 : 0;
      codes[i] = static_cast<int8_t>(code);
      biased[i] = static_cast<uint8_t>(code + 128);
      sum += code;
    }
    sums[first / kSumInputs] = sum;
  }
  // A row that is not finite gives results that are not: 0 * NaN.
  return finite ? (zero ? 0.0f : top / 127.0f) : top - top;
}

void split_planes(const float* values, int64_t n, uint8_t* planes) {
  for (int64_t first = 0; first < n; first += 32) {
    for (int64_t i = 0; i < 32; ++i) {
      uint32_t bits;
      memcpy(&bits, values + first + i, sizeof bits);
      for (int byte = 0; byte < 4; ++byte) {
        planes[4 * first + 32 * byte + i] = static_cast<uint8_t>(bits >> (8 * byte));
      }
    }
  }
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
