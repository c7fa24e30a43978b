// What the dense kernels of integers share.
#ifndef SPARSE_JAX_KERNELS_CPU_DENSE_INTS_H_
#define SPARSE_JAX_KERNELS_CPU_DENSE_INTS_H_

#include <string.h>

#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

inline int32_t load_four(const int8_t* codes) {
  int32_t four;
  memcpy(&four, codes, sizeof four);
  return four;
}

template <int kStreams, int kBatch>
inline void store_scaled(const Call& call, const int64_t (&panels)[kStreams],
                         int64_t row, const Floats (&sums)[kStreams][kBatch]) {
  for (int s = 0; s < kStreams; ++s) {
    for (int b = 0; b < kBatch; ++b) {
      store_outputs(call, row + b, panels[s],
                    mul(sums[s][b], set1(call.x->scales[row + b])));
    }
  }
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_DENSE_INTS_H_
