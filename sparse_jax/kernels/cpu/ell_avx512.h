// One step of the tail of ell_int8: a permutation looks an id up in 128 activations.
#ifndef SPARSE_JAX_KERNELS_CPU_ELL_AVX512_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_AVX512_H_

#include "ell_layout.h"
#include "n16_avx512.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// The activations at 64 ids of a window.
inline Bytes gather_tail(const uint8_t* ids, const int8_t* window) {
  const __m512i index = load_bytes(ids);
  const __m512i near =
      _mm512_permutex2var_epi8(load_bytes(window), index, load_bytes(window + 64));
  const __m512i far = _mm512_permutex2var_epi8(load_bytes(window + 128), index,
                                               load_bytes(window + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), near, far);
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_AVX512_H_
