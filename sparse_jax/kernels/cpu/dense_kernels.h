#ifndef SPARSE_JAX_KERNELS_CPU_DENSE_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_DENSE_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

void dense_float32(const Call& call, int64_t begin, int64_t end);
void dense_bfloat16(const Call& call, int64_t begin, int64_t end);
void dense_int8(const Call& call, int64_t begin, int64_t end);
void dense_int4(const Call& call, int64_t begin, int64_t end);
void dense_int2(const Call& call, int64_t begin, int64_t end);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_DENSE_KERNELS_H_
