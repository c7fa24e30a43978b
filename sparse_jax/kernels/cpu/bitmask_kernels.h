#ifndef SPARSE_JAX_KERNELS_CPU_BITMASK_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_BITMASK_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

void bitmask_float32(const Call& call, int64_t begin, int64_t end);
void bitmask_bfloat16(const Call& call, int64_t begin, int64_t end);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_BITMASK_KERNELS_H_
