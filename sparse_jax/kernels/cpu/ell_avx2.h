// One step of the tail of ell_int8: 16 shuffles look an id up in 16 blocks.
#ifndef SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_

#include "ell_layout.h"
#include "n16_avx2.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// The activations at 32 ids of a window of 16 blocks. A shuffle gives zero where bit 7
// of its index is set, so four blocks are looked up with indices that are valid in one
// of them, and joined; three blends choose among the four results.
inline __m256i gather_half(__m256i ids, const int8_t* window) {
  const __m256i low = _mm256_and_si256(ids, _mm256_set1_epi8(63));
  __m256i index[4], quarter[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    // Below 16 in block i alone; + 112 carries everything else into bit 7.
    const __m256i in_block = _mm256_xor_si256(low, _mm256_set1_epi8(16 * i));
    index[i] = _mm256_add_epi8(in_block, _mm256_set1_epi8(112));
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    quarter[q] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i block = broadcast_16_bytes(window + 64 * q + 16 * i);
      quarter[q] =
          _mm256_or_si256(quarter[q], _mm256_shuffle_epi8(block, index[i]));
    }
  }
  // A blend looks at bit 7 of each byte.
  const __m256i bit6 = _mm256_slli_epi16(ids, 1);
  return _mm256_blendv_epi8(_mm256_blendv_epi8(quarter[0], quarter[1], bit6),
                            _mm256_blendv_epi8(quarter[2], quarter[3], bit6), ids);
}

// The activations at 64 ids of a window.
inline Bytes gather_tail(const uint8_t* ids, const int8_t* window) {
  return {gather_half(load_bytes(ids), window),
          gather_half(load_bytes(ids + 32), window)};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_
