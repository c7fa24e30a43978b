// The parts of an N:16 superblock: a byte shuffle gathers 32 activations at a time from
// the 16 of a block, held in one register. Layouts: n16_layout.h.
#ifndef SPARSE_JAX_KERNELS_CPU_N16_AVX2_H_
#define SPARSE_JAX_KERNELS_CPU_N16_AVX2_H_

#include "n16_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// 64 bytes: half 0 and half 1 of the panel.
struct Bytes {
  __m256i low, high;
};
using Ids = Bytes;

inline Bytes nibbles(__m256i bytes) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(bytes, mask),
          _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask)};
}

inline Ids load_ids(const uint8_t* p) { return nibbles(load_bytes(p)); }

inline Bytes gather_quad(const Ids& ids, const int8_t* x_block) {
  const __m256i x = broadcast_16_bytes(x_block);
  return {_mm256_shuffle_epi8(x, ids.low), _mm256_shuffle_epi8(x, ids.high)};
}

// One slot of 4 blocks: gathered as [block][output], brought to [output][block].
inline Bytes gather_rest(const Ids& ids, const int8_t* x) {
  const __m256i interleave =
      _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,  //
                       0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
  __m256i first = _mm256_shuffle_epi8(load_bytes(x), ids.low);
  __m256i second = _mm256_shuffle_epi8(load_bytes(x + 32), ids.high);
  first = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(first, 0xd8), interleave);
  second = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(second, 0xd8), interleave);
  return {_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)};
}

inline Bytes load_codes(const uint8_t* p) {
  return {load_bytes(p), load_bytes(p + 32)};
}

// 4-bit two's complement, 8 added: unsigned.
inline Bytes load_nibble_codes(const uint8_t* p) {
  return nibbles(_mm256_xor_si256(load_bytes(p), _mm256_set1_epi8(-0x78)));
}

// 16-bit sums of the products of those with x: each is below 2^11, and a superblock has
// at most 16 of them.
struct NibbleSums {
  __m256i low, high;
};

inline NibbleSums no_nibble_sums() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}

inline __m256i add_nibble_products(__m256i sum, __m256i codes, __m256i x) {
  const __m256i eight = _mm256_set1_epi8(8);
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
  return _mm256_sub_epi16(sum, _mm256_maddubs_epi16(eight, x));
}

inline NibbleSums add_nibble_products(const NibbleSums& sum, const Bytes& codes,
                                      const Bytes& x) {
  return {add_nibble_products(sum.low, codes.low, x.low),
          add_nibble_products(sum.high, codes.high, x.high)};
}

inline Ints add_nibble_sums(const Ints& sum, const NibbleSums& part) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(part.low, one)),
          _mm256_add_epi32(sum.high, _mm256_madd_epi16(part.high, one))};
}

inline Ints add_products(const Ints& sum, const Bytes& codes, const Bytes& x) {
  return {dot4(sum.low, codes.low, x.low), dot4(sum.high, codes.high, x.high)};
}

// Between [half][lane] and the order of the outputs, both ways.
inline Floats to_output_order(const Floats& sums) {
  return {_mm256_permute2f128_ps(sums.low, sums.high, 0x20),
          _mm256_permute2f128_ps(sums.low, sums.high, 0x31)};
}

// The bytes of floats are gathered plane by plane and joined again.
struct BlockTable {
  __m256i plane[4];
};

// `planes` are those of the superblock: [block / 2][byte][block % 2][16].
inline BlockTable load_block(const float*, const uint8_t* planes, int block) {
  const uint8_t* p = planes + 128 * (block / 2) + 16 * (block % 2);
  return {{broadcast_16_bytes(p), broadcast_16_bytes(p + 32),
           broadcast_16_bytes(p + 64), broadcast_16_bytes(p + 96)}};
}

struct FourFloats {
  __m256 slot[4];  // [j][lane]
};

inline FourFloats gather_floats(const BlockTable& table, __m256i ids) {
  const __m256i byte0 = _mm256_shuffle_epi8(table.plane[0], ids);
  const __m256i byte1 = _mm256_shuffle_epi8(table.plane[1], ids);
  const __m256i byte2 = _mm256_shuffle_epi8(table.plane[2], ids);
  const __m256i byte3 = _mm256_shuffle_epi8(table.plane[3], ids);
  const __m256i low01 = _mm256_unpacklo_epi8(byte0, byte1);
  const __m256i high01 = _mm256_unpackhi_epi8(byte0, byte1);
  const __m256i low23 = _mm256_unpacklo_epi8(byte2, byte3);
  const __m256i high23 = _mm256_unpackhi_epi8(byte2, byte3);
  return {{_mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23)),
           _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23)),
           _mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23)),
           _mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23))}};
}

inline FourFloats load_half(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), _mm256_loadu_ps(p + 16),
           _mm256_loadu_ps(p + 24)}};
}

inline FourFloats load_half(const uint16_t* p) {
  const __m256i a = load_bytes(p), b = load_bytes(p + 16);
  return {{lower_halves(a), upper_halves(a), lower_halves(b), upper_halves(b)}};
}

struct FloatSums {
  __m256 half[2];  // of the quads: [output]
  __m256 rest[4];  // [j][block % 2][output % 4]
};

inline FloatSums no_float_sums() {
  const __m256 zero = _mm256_setzero_ps();
  return {{zero, zero}, {zero, zero, zero, zero}};
}

template <typename Value>
inline void add_float_quad(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const BlockTable& table) {
  const Ids kept = load_ids(ids);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const FourFloats x = gather_floats(table, half == 0 ? kept.low : kept.high);
    const FourFloats w = load_half(values + 32 * half);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums.half[half] = _mm256_fmadd_ps(w.slot[j], x.slot[j], sums.half[half]);
    }
  }
}

template <typename Value>
inline void add_float_rest(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const float*, const uint8_t* planes) {
  const Ids kept = load_ids(ids);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const uint8_t* p = planes + 128 * half;
    const BlockTable two_blocks = {
        {load_bytes(p), load_bytes(p + 32), load_bytes(p + 64), load_bytes(p + 96)}};
    const FourFloats x = gather_floats(two_blocks, half == 0 ? kept.low : kept.high);
    const FourFloats w = load_half(values + 32 * half);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums.rest[j] = _mm256_fmadd_ps(w.slot[j], x.slot[j], sums.rest[j]);
    }
  }
}

inline __m128 add_halves(__m256 a) {
  return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}

inline Floats total(const FloatSums& sums, bool has_rest) {
  if (!has_rest) return {sums.half[0], sums.half[1]};
  const __m256 low =
      _mm256_set_m128(add_halves(sums.rest[1]), add_halves(sums.rest[0]));
  const __m256 high =
      _mm256_set_m128(add_halves(sums.rest[3]), add_halves(sums.rest[2]));
  return {_mm256_add_ps(sums.half[0], low), _mm256_add_ps(sums.half[1], high)};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_AVX2_H_
