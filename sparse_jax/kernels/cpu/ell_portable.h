// One step of the tail of ell_int8 in plain loops.
#ifndef SPARSE_JAX_KERNELS_CPU_ELL_PORTABLE_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_PORTABLE_H_

#include "ell_layout.h"
#include "n16_portable.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// The activations at 64 ids of a window.
inline Bytes gather_tail(const uint8_t* ids, const int8_t* window) {
  Bytes x;
  for (int i = 0; i < kTailSlots; ++i) x.byte[i] = window[ids[i] % kWindow];
  return x;
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_PORTABLE_H_
