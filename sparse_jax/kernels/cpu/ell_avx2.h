// One step of the tail of ell_int8: 8 shuffles look an id up in 8 blocks.
#ifndef SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_

#include "ell_layout.h"
#include "n16_avx2.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// The activations at 64 ids of a window of 8 blocks. A shuffle gives zero where bit 7 of
// its index is set, so four blocks are looked up with indices that are valid in one of
// them, and joined; a blend chooses between the two results.
inline Bytes gather_tail(const uint8_t* ids, const int8_t* window) {
  const __m256i id[2] = {load_bytes(ids), load_bytes(ids + 32)};
  __m256i found[2][2];  // [half of the window][half of the panel]
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i near = broadcast_16_bytes(window + 16 * i);
    const __m256i far = broadcast_16_bytes(window + 64 + 16 * i);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      // Below 16 in block i alone; + 112 carries everything else into bit 7.
      const __m256i low = _mm256_and_si256(id[h], _mm256_set1_epi8(63));
      const __m256i in_block = _mm256_xor_si256(low, _mm256_set1_epi8(16 * i));
      const __m256i index = _mm256_add_epi8(in_block, _mm256_set1_epi8(112));
      const __m256i x_near = _mm256_shuffle_epi8(near, index);
      const __m256i x_far = _mm256_shuffle_epi8(far, index);
      found[0][h] = i == 0 ? x_near : _mm256_or_si256(found[0][h], x_near);
      found[1][h] = i == 0 ? x_far : _mm256_or_si256(found[1][h], x_far);
    }
  }
  // A blend looks at bit 7 of each byte.
  return {_mm256_blendv_epi8(found[0][0], found[1][0], _mm256_slli_epi16(id[0], 1)),
          _mm256_blendv_epi8(found[0][1], found[1][1], _mm256_slli_epi16(id[1], 1))};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_AVX2_H_
