#ifndef SPARSE_JAX_KERNELS_CPU_N16_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_N16_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

void n16_float32(const Call& call, int64_t begin, int64_t end);
void n16_bfloat16(const Call& call, int64_t begin, int64_t end);
void n16_int8(const Call& call, int64_t begin, int64_t end);
void n16_int4(const Call& call, int64_t begin, int64_t end);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_KERNELS_H_
