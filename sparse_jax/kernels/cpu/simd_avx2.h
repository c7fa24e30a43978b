// Sixteen lanes as two 256-bit registers.
#ifndef SPARSE_JAX_KERNELS_CPU_SIMD_AVX2_H_
#define SPARSE_JAX_KERNELS_CPU_SIMD_AVX2_H_

#include <immintrin.h>
#include <stdint.h>

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// Rows of the GEMM's micro-kernel: 12 sums, 2 weights and 1 activation in 16 registers.
constexpr int kGemmRows = 6;

struct Floats {
  __m256 low, high;
};

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

inline Floats load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

inline Floats set1(float value) {
  const __m256 v = _mm256_set1_ps(value);
  return {v, v};
}

inline Floats add(const Floats& a, const Floats& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline Floats mul(const Floats& a, const Floats& b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low),
          _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline void store(float* p, const Floats& a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// The same 16 bytes in both halves.
inline __m256i broadcast_16_bytes(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// A bfloat16 is the upper half of a float.
inline __m256 lower_halves(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

inline __m256 upper_halves(__m256i pairs) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

// 16 pairs of bfloat16: the first and the second of each pair.
inline void load_bfloat16_pairs(const uint16_t* p, Floats* first, Floats* second) {
  const __m256i a = load_bytes(p), b = load_bytes(p + 16);
  *first = {lower_halves(a), lower_halves(b)};
  *second = {upper_halves(a), upper_halves(b)};
}

inline __m256 widen_bfloat16(const uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline Floats load_bfloat16(const uint16_t* p) {
  return {widen_bfloat16(p), widen_bfloat16(p + 8)};
}

struct Ints {
  __m256i low, high;
};

inline Ints int_set1(int32_t value) {
  const __m256i v = _mm256_set1_epi32(value);
  return {v, v};
}

inline Ints int_zeros() { return int_set1(0); }

inline Floats to_floats(const Ints& a) {
  return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}

// sum + the products of four neighbouring bytes. |a| <= 127 and |b| <= 127 keep the
// 16-bit sums of two products from saturating.
inline __m256i dot4(__m256i sum, __m256i a, __m256i b) {
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// sum + for every lane the products of its 4 codes with the 4 bytes of `x`.
inline Ints dot4_codes(const Ints& sum, const void* codes, int32_t x) {
  const char* w = static_cast<const char*>(codes);
  const __m256i x4 = _mm256_set1_epi32(x);
  return {dot4(sum.low, load_bytes(w), x4), dot4(sum.high, load_bytes(w + 32), x4)};
}

// The same for 64 bytes of unsigned nibbles: low ones with `x_low`, high with `x_high`.
// Sums of at most kNibbleSteps such steps may be pending: 8 * 2 * 15 * 127 < 2^15.
constexpr int kNibbleSteps = 4;

struct Pending {
  __m256i low, high;  // 16-bit sums of two products
};

inline Pending no_pending() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

inline __m256i add_nibbles_half(__m256i sum, __m256i bytes, __m256i x_low,
                                __m256i x_high) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i low = _mm256_and_si256(bytes, mask);
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(low, x_low));
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(high, x_high));
}

inline Pending add_nibbles(const Pending& sum, const void* nibbles, int32_t x_low,
                           int32_t x_high) {
  const char* w = static_cast<const char*>(nibbles);
  const __m256i low = _mm256_set1_epi32(x_low), high = _mm256_set1_epi32(x_high);
  return {add_nibbles_half(sum.low, load_bytes(w), low, high),
          add_nibbles_half(sum.high, load_bytes(w + 32), low, high)};
}

inline Ints flush(const Ints& sum, const Pending& pending) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(pending.low, one)),
          _mm256_add_epi32(sum.high, _mm256_madd_epi16(pending.high, one))};
}

// The same for 64 bytes of unsigned codes of 2 bits: quarter k of the bytes, from the
// lowest bits up, with x[k]. Two quarters are multiplied where they lie, as four times
// themselves. At most kQuarterSteps may be pending: 4 * 2 * 2 * 12 * 127 < 2^15.
constexpr int kQuarterSteps = 4;

struct Quarters {
  Pending ones, fours;
};

inline Quarters no_quarters() { return {no_pending(), no_pending()}; }

inline void add_quarters_half(__m256i* ones, __m256i* fours, __m256i bytes,
                              const int32_t (&x)[4]) {
  const __m256i low = _mm256_set1_epi8(3), second = _mm256_set1_epi8(12);
#pragma GCC unroll 2
  for (int k = 0; k < 4; k += 2) {
    const __m256i first_x = _mm256_set1_epi32(x[k]);
    const __m256i second_x = _mm256_set1_epi32(x[k + 1]);
    *ones = _mm256_add_epi16(
        *ones, _mm256_maddubs_epi16(_mm256_and_si256(bytes, low), first_x));
    *fours = _mm256_add_epi16(
        *fours, _mm256_maddubs_epi16(_mm256_and_si256(bytes, second), second_x));
    bytes = _mm256_srli_epi16(bytes, 4);
  }
}

inline Quarters add_quarters(const Quarters& sums, const void* codes,
                             const int32_t (&x)[4]) {
  const char* w = static_cast<const char*>(codes);
  Quarters total = sums;
  add_quarters_half(&total.ones.low, &total.fours.low, load_bytes(w), x);
  add_quarters_half(&total.ones.high, &total.fours.high, load_bytes(w + 32), x);
  return total;
}

inline Ints flush(const Ints& sum, const Quarters& pending) {
  const Ints fours = flush(int_zeros(), pending.fours);
  const Ints ones = flush(sum, pending.ones);
  return {_mm256_add_epi32(ones.low, _mm256_srai_epi32(fours.low, 2)),
          _mm256_add_epi32(ones.high, _mm256_srai_epi32(fours.high, 2))};
}

// 16 numbers of kBits = 2 or 4 bits, from the lowest bits of `words` up.
template <int kBits>
inline Ints unpack_bits(const uint32_t* words) {
  const __m256i mask = _mm256_set1_epi32((1 << kBits) - 1);
  const __m256i shifts = _mm256_setr_epi32(0, kBits, 2 * kBits, 3 * kBits, 4 * kBits,
                                           5 * kBits, 6 * kBits, 7 * kBits);
  const uint32_t second = kBits == 4 ? words[1] : words[0] >> 16;
  const auto unpack = [&](uint32_t word) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(word));
    return _mm256_and_si256(_mm256_srlv_epi32(all, shifts), mask);
  };
  return {unpack(words[0]), unpack(second)};
}

// a * b, where a is not negative and both have less than 16 bits.
inline Ints multiply_small(const Ints& a, int32_t b) {
  const __m256i factor = _mm256_set1_epi32(b);
  return {_mm256_madd_epi16(a.low, factor), _mm256_madd_epi16(a.high, factor)};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SIMD_AVX2_H_
