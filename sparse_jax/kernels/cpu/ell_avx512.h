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
  return _mm512_permutex2var_epi8(load_bytes(window), load_bytes(ids),
                                  load_bytes(window + 64));
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_AVX512_H_
