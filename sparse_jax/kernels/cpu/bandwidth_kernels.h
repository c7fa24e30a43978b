#ifndef SPARSE_JAX_KERNELS_CPU_BANDWIDTH_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_BANDWIDTH_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

// Reads n floats and adds them up.
float read_floats(const float* values, int64_t n);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_BANDWIDTH_KERNELS_H_
