#ifndef SPARSE_JAX_KERNELS_CPU_ACTIVATION_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_ACTIVATION_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

// See activations.h. `n` is a multiple of 128 in both.
float quantize_row(const float* values, int64_t n, int8_t* codes, uint8_t* biased,
                   int32_t* sums);
void split_planes(const float* values, int64_t n, uint8_t* planes);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ACTIVATION_KERNELS_H_
