// Plain loops over sixteen lanes; the reference for the other two.
#ifndef SPARSE_JAX_KERNELS_CPU_SIMD_PORTABLE_H_
#define SPARSE_JAX_KERNELS_CPU_SIMD_PORTABLE_H_

#include <stdint.h>
#include <string.h>

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// Rows of the GEMM's micro-kernel: as many as the registers hold.
constexpr int kGemmRows = 4;

struct Floats {
  float lane[16];
};

inline Floats zeros() { return Floats{}; }

inline Floats load(const float* p) {
  Floats a;
  memcpy(a.lane, p, sizeof a.lane);
  return a;
}

inline Floats set1(float value) {
  Floats a;
  for (float& lane : a.lane) lane = value;
  return a;
}

inline Floats add(const Floats& a, const Floats& b) {
  Floats sum;
  for (int i = 0; i < 16; ++i) sum.lane[i] = a.lane[i] + b.lane[i];
  return sum;
}

inline Floats mul(const Floats& a, const Floats& b) {
  Floats product;
  for (int i = 0; i < 16; ++i) product.lane[i] = a.lane[i] * b.lane[i];
  return product;
}

inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  Floats sum;
  for (int i = 0; i < 16; ++i) sum.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
  return sum;
}

inline void store(float* p, const Floats& a) { memcpy(p, a.lane, sizeof a.lane); }

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 16 pairs of bfloat16: the first and the second of each pair.
inline void load_bfloat16_pairs(const uint16_t* p, Floats* first, Floats* second) {
  for (int i = 0; i < 16; ++i) {
    first->lane[i] = bits_to_float(static_cast<uint32_t>(p[2 * i]) << 16);
    second->lane[i] = bits_to_float(static_cast<uint32_t>(p[2 * i + 1]) << 16);
  }
}

inline Floats load_bfloat16(const uint16_t* p) {
  Floats a;
  for (int i = 0; i < 16; ++i) {
    a.lane[i] = bits_to_float(static_cast<uint32_t>(p[i]) << 16);
  }
  return a;
}

struct Ints {
  int32_t lane[16];
};

inline Ints int_zeros() { return Ints{}; }

inline Ints int_set1(int32_t value) {
  Ints a;
  for (int32_t& lane : a.lane) lane = value;
  return a;
}

// sum + for every lane the products of its 4 codes with the 4 bytes of `x`.
inline Ints dot4_codes(const Ints& sum, const void* codes, int32_t x) {
  const int8_t* w = static_cast<const int8_t*>(codes);
  int8_t x_bytes[4];
  memcpy(x_bytes, &x, sizeof x_bytes);
  Ints total = sum;
  for (int i = 0; i < 64; ++i) total.lane[i / 4] += w[i] * x_bytes[i % 4];
  return total;
}

// The same for 64 bytes of unsigned nibbles: low ones with `x_low`, high with `x_high`.
// Sums of at most kNibbleSteps such steps may be pending.
constexpr int kNibbleSteps = 4;
using Pending = Ints;

inline Pending no_pending() { return int_zeros(); }

inline Pending add_nibbles(const Pending& sum, const void* nibbles, int32_t x_low,
                           int32_t x_high) {
  uint8_t bytes[64], low[64], high[64];
  memcpy(bytes, nibbles, sizeof bytes);
  for (int i = 0; i < 64; ++i) {
    low[i] = bytes[i] & 15;
    high[i] = bytes[i] >> 4;
  }
  return dot4_codes(dot4_codes(sum, low, x_low), high, x_high);
}

inline Ints flush(const Ints& sum, const Pending& pending) {
  Ints total;
  for (int i = 0; i < 16; ++i) total.lane[i] = sum.lane[i] + pending.lane[i];
  return total;
}

// The same for 64 bytes of unsigned codes of 2 bits: quarter k of the bytes, from the
// lowest bits up, with x[k].
constexpr int kQuarterSteps = 4;
struct Quarters {
  Ints all;
};

inline Quarters no_quarters() { return {int_zeros()}; }

inline Quarters add_quarters(const Quarters& sums, const void* codes,
                             const int32_t (&x)[4]) {
  uint8_t bytes[64], quarter[64];
  memcpy(bytes, codes, sizeof bytes);
  Quarters total = sums;
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 64; ++i) quarter[i] = (bytes[i] >> (2 * k)) & 3;
    total.all = dot4_codes(total.all, quarter, x[k]);
  }
  return total;
}

inline Ints flush(const Ints& sum, const Quarters& pending) {
  return flush(sum, pending.all);
}

// 16 numbers of kBits = 2 or 4 bits, from the lowest bits of `words` up.
template <int kBits>
inline Ints unpack_bits(const uint32_t* words) {
  constexpr int kInWord = 32 / kBits;
  Ints a;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = words[i / kInWord] >> (kBits * (i % kInWord));
    a.lane[i] = static_cast<int32_t>(bits & ((1u << kBits) - 1));
  }
  return a;
}

// a * b, where a is not negative and both have less than 16 bits.
inline Ints multiply_small(const Ints& a, int32_t b) {
  Ints product;
  for (int i = 0; i < 16; ++i) product.lane[i] = a.lane[i] * b;
  return product;
}

inline Floats to_floats(const Ints& a) {
  Floats f;
  for (int i = 0; i < 16; ++i) f.lane[i] = static_cast<float>(a.lane[i]);
  return f;
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SIMD_PORTABLE_H_
