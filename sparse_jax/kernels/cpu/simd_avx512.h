// Sixteen lanes as one 512-bit register; bytes multiplied by VNNI.
#ifndef SPARSE_JAX_KERNELS_CPU_SIMD_AVX512_H_
#define SPARSE_JAX_KERNELS_CPU_SIMD_AVX512_H_

#include <immintrin.h>
#include <stdint.h>

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// Rows of the GEMM's micro-kernel: enough sums in flight to hide the latency of FMA.
constexpr int kGemmRows = 12;

struct Floats {
  __m512 all;
};

inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats set1(float value) { return {_mm512_set1_ps(value)}; }

inline Floats add(const Floats& a, const Floats& b) {
  return {_mm512_add_ps(a.all, b.all)};
}

inline Floats mul(const Floats& a, const Floats& b) {
  return {_mm512_mul_ps(a.all, b.all)};
}

inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}

inline void store(float* p, const Floats& a) { _mm512_storeu_ps(p, a.all); }

inline __m512i load_bytes(const void* p) { return _mm512_loadu_si512(p); }

// A bfloat16 is the upper half of a float.
inline __m512 lower_halves(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

inline __m512 upper_halves(__m512i pairs) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// 16 pairs of bfloat16: the first and the second of each pair.
inline void load_bfloat16_pairs(const uint16_t* p, Floats* first, Floats* second) {
  const __m512i pairs = load_bytes(p);
  *first = {lower_halves(pairs)};
  *second = {upper_halves(pairs)};
}

inline Floats load_bfloat16(const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}

struct Ints {
  __m512i all;
};

inline Ints int_set1(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Ints int_zeros() { return {_mm512_setzero_si512()}; }
inline Floats to_floats(const Ints& a) { return {_mm512_cvtepi32_ps(a.all)}; }

// sum + the products of four neighbouring bytes, both signed and above -128.
inline __m512i dot4(__m512i sum, __m512i a, __m512i b) {
  const __m512i signed_b =
      _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
  return _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(a), signed_b);
}

// sum + for every lane the products of its 4 codes with the 4 bytes of `x`.
inline Ints dot4_codes(const Ints& sum, const void* codes, int32_t x) {
  return {dot4(sum.all, load_bytes(codes), _mm512_set1_epi32(x))};
}

// The same for 64 bytes of unsigned nibbles: low ones with `x_low`, high with `x_high`.
// Sums of at most kNibbleSteps such steps may be pending: with VNNI, any number.
constexpr int kNibbleSteps = 16;
using Pending = Ints;

inline Pending no_pending() { return int_zeros(); }

inline Pending add_nibbles(const Pending& sum, const void* nibbles, int32_t x_low,
                           int32_t x_high) {
  const __m512i bytes = load_bytes(nibbles), mask = _mm512_set1_epi8(15);
  const __m512i low = _mm512_and_si512(bytes, mask);
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
  const __m512i half = _mm512_dpbusd_epi32(sum.all, low, _mm512_set1_epi32(x_low));
  return {_mm512_dpbusd_epi32(half, high, _mm512_set1_epi32(x_high))};
}

inline Ints flush(const Ints& sum, const Pending& pending) {
  return {_mm512_add_epi32(sum.all, pending.all)};
}

// The same for 64 bytes of unsigned codes of 2 bits: quarter k of the bytes, from the
// lowest bits up, with x[k]. Two quarters are multiplied where they lie, as four times
// themselves.
constexpr int kQuarterSteps = 4;

struct Quarters {
  Ints ones, fours;
};

inline Quarters no_quarters() { return {int_zeros(), int_zeros()}; }

inline Quarters add_quarters(const Quarters& sums, const void* codes,
                             const int32_t (&x)[4]) {
  const __m512i low = _mm512_set1_epi8(3), second = _mm512_set1_epi8(12);
  __m512i bytes = load_bytes(codes), ones = sums.ones.all, fours = sums.fours.all;
#pragma GCC unroll 2
  for (int k = 0; k < 4; k += 2) {
    ones = _mm512_dpbusd_epi32(ones, _mm512_and_si512(bytes, low),
                               _mm512_set1_epi32(x[k]));
    fours = _mm512_dpbusd_epi32(fours, _mm512_and_si512(bytes, second),
                                _mm512_set1_epi32(x[k + 1]));
    bytes = _mm512_srli_epi16(bytes, 4);
  }
  return {{ones}, {fours}};
}

inline Ints flush(const Ints& sum, const Quarters& pending) {
  const __m512i fours = _mm512_srai_epi32(pending.fours.all, 2);
  return {_mm512_add_epi32(_mm512_add_epi32(sum.all, pending.ones.all), fours)};
}

// 16 numbers of kBits = 2 or 4 bits, from the lowest bits of `words` up.
template <int kBits>
inline Ints unpack_bits(const uint32_t* words) {
  const __m512i lanes =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_slli_epi32(lanes, kBits == 4 ? 2 : 1);
  __m512i all = _mm512_set1_epi32(static_cast<int>(words[0]));
  if (kBits == 4) {
    const __m256i second = _mm256_set1_epi32(static_cast<int>(words[1]));
    all = _mm512_inserti64x4(all, second, 1);
  }
  const __m512i shifts = _mm512_and_si512(places, _mm512_set1_epi32(31));
  return {_mm512_and_si512(_mm512_srlv_epi32(all, shifts),
                           _mm512_set1_epi32((1 << kBits) - 1))};
}

// a * b, where a is not negative and both have less than 16 bits.
inline Ints multiply_small(const Ints& a, int32_t b) {
  return {_mm512_madd_epi16(a.all, _mm512_set1_epi32(b))};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SIMD_AVX512_H_
