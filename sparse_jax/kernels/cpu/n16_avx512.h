// The parts of an N:16 superblock: both halves of the panel in one register, and a
// block's 16 floats, too. Layouts: n16_layout.h.
#ifndef SPARSE_JAX_KERNELS_CPU_N16_AVX512_H_
#define SPARSE_JAX_KERNELS_CPU_N16_AVX512_H_

#include "n16_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

using Bytes = __m512i;  // half 0 and half 1 of the panel
using Ids = __m512i;

inline __m256i load_32(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// 32 bytes as 64 nibbles: the low ones, then the high ones.
inline Bytes nibbles(__m256i bytes) {
  const __m512i shifted = _mm512_srlv_epi64(_mm512_broadcast_i64x4(bytes),
                                            _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
  return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
}

inline Ids load_ids(const uint8_t* p) { return nibbles(load_32(p)); }

inline Bytes gather_quad(Ids ids, const int8_t* x_block) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x_block));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(x), ids);
}

// One slot of 4 blocks: gathered as [block][output], brought to [half][lane][block].
inline Bytes gather_rest(Ids ids, const int8_t* x) {
  alignas(64) static constexpr uint8_t kOrder[64] = {
      0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51,  //
      8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59,  //
      4,  20, 36, 52, 5,  21, 37, 53, 6,  22, 38, 54, 7,  23, 39, 55,  //
      12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
  const __m512i gathered = _mm512_shuffle_epi8(load_bytes(x), ids);
  return _mm512_permutexvar_epi8(_mm512_load_si512(kOrder), gathered);
}

inline Bytes load_codes(const uint8_t* p) { return load_bytes(p); }

// 4-bit two's complement, 8 added: unsigned.
inline Bytes load_nibble_codes(const uint8_t* p) {
  return nibbles(_mm256_xor_si256(load_32(p), _mm256_set1_epi8(-0x78)));
}

// Sums of the products of those with x, and of 8 x, which are too much of them.
struct NibbleSums {
  __m512i products, excess;
};

inline NibbleSums no_nibble_sums() {
  return {_mm512_setzero_si512(), _mm512_setzero_si512()};
}

inline NibbleSums add_nibble_products(const NibbleSums& sums, Bytes codes, Bytes x) {
  return {_mm512_dpbusd_epi32(sums.products, codes, x),
          _mm512_dpbusd_epi32(sums.excess, _mm512_set1_epi8(8), x)};
}

inline Ints add_nibble_sums(const Ints& sum, const NibbleSums& part) {
  return {_mm512_add_epi32(sum.all, _mm512_sub_epi32(part.products, part.excess))};
}

inline Ints add_products(const Ints& sum, Bytes codes, Bytes x) {
  return {dot4(sum.all, codes, x)};
}

// Between [half][lane] and the order of the outputs, both ways.
inline Floats to_output_order(const Floats& sums) {
  return {_mm512_shuffle_f32x4(sums.all, sums.all, 0xd8)};
}

struct BlockTable {
  __m512 x;
};

inline BlockTable load_block(const float* x, const uint8_t*, int block) {
  return {_mm512_loadu_ps(x + 16 * block)};
}

// Two registers of 16 weights, [2 slots][8 lanes], and the ids that belong to them.
struct FloatHalf {
  __m512 w[2];
};

inline FloatHalf load_half(const float* p) {
  return {{_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}};
}

inline FloatHalf load_half(const uint16_t* p) {
  const __m512i pairs = load_bytes(p);
  return {{lower_halves(pairs), upper_halves(pairs)}};
}

struct WideIds {
  __m512i ids[2];  // one for each register of FloatHalf, in 32-bit lanes
};

// Slots 0 1 | 2 3 of float32, 0 2 | 1 3 of bfloat16, whose pairs share 32 bits.
inline WideIds widen_ids(const uint8_t* ids, const float*) {
  const __m256i order = _mm256_permutevar8x32_epi32(
      load_32(ids), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  return {{_mm512_cvtepu8_epi32(_mm256_castsi256_si128(order)),
           _mm512_cvtepu8_epi32(_mm256_extracti128_si256(order, 1))}};
}

inline WideIds widen_ids(const uint8_t* ids, const uint16_t*) {
  const __m256i order = _mm256_permutevar8x32_epi32(
      load_32(ids), _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
  return {{_mm512_cvtepu8_epi32(_mm256_castsi256_si128(order)),
           _mm512_cvtepu8_epi32(_mm256_extracti128_si256(order, 1))}};
}

struct FloatSums {
  __m512 half[2];  // of the quads: [2 slots][output]
  __m512 rest[2];  // [2 j][block % 2][output % 4]
  bool pairs;      // which two: as in WideIds
};

inline FloatSums no_float_sums() {
  const __m512 zero = _mm512_setzero_ps();
  return {{zero, zero}, {zero, zero}, false};
}

inline bool in_pairs(const float*) { return false; }
inline bool in_pairs(const uint16_t*) { return true; }

template <typename Value>
inline void add_float_quad(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const BlockTable& table) {
  const WideIds wide = widen_ids(ids, values);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const FloatHalf w = load_half(values + 32 * half);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      // The permutation reads the low 4 bits of an id alone.
      const __m512i at = half == 0 ? wide.ids[i] : _mm512_srli_epi32(wide.ids[i], 4);
      const __m512 x = _mm512_permutexvar_ps(at, table.x);
      sums.half[half] = _mm512_fmadd_ps(w.w[i], x, sums.half[half]);
    }
  }
}

template <typename Value>
inline void add_float_rest(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const float* x, const uint8_t*) {
  const WideIds wide = widen_ids(ids, values);
  // Bit 4 chooses the second block of the pair.
  const __m512i block = _mm512_setr_epi32(0, 0, 0, 0, 16, 16, 16, 16,  //
                                          0, 0, 0, 0, 16, 16, 16, 16);
  const __m512i mask = _mm512_set1_epi32(15);
  sums.pairs = in_pairs(values);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const FloatHalf w = load_half(values + 32 * half);
    const __m512 first = _mm512_loadu_ps(x + 32 * half);
    const __m512 second = _mm512_loadu_ps(x + 32 * half + 16);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512i id = half == 0 ? _mm512_and_si512(wide.ids[i], mask)
                                   : _mm512_srli_epi32(wide.ids[i], 4);
      const __m512 kept =
          _mm512_permutex2var_ps(first, _mm512_or_si512(id, block), second);
      sums.rest[i] = _mm512_fmadd_ps(w.w[i], kept, sums.rest[i]);
    }
  }
}

inline Floats total(const FloatSums& sums, bool has_rest) {
  // The two slots of each half, one above the other.
  const __m512 low = _mm512_shuffle_f32x4(sums.half[0], sums.half[1], 0x44);
  const __m512 high = _mm512_shuffle_f32x4(sums.half[0], sums.half[1], 0xee);
  const __m512 quads = _mm512_add_ps(low, high);
  if (!has_rest) return {quads};
  // Quarters are (j, block 0), (j, block 1), (j', block 0), (j', block 1).
  const __m512 even = _mm512_shuffle_f32x4(sums.rest[0], sums.rest[1], 0x88);
  const __m512 odd = _mm512_shuffle_f32x4(sums.rest[0], sums.rest[1], 0xdd);
  const __m512 rest = _mm512_add_ps(even, odd);  // j: 0 1 2 3, or 0 2 1 3 in pairs
  const __m512 ordered = sums.pairs ? _mm512_shuffle_f32x4(rest, rest, 0xd8) : rest;
  return {_mm512_add_ps(quads, ordered)};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_AVX512_H_
