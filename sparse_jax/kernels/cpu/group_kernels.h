#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

void group_int4(const Call& call, int64_t begin, int64_t end);
void group_int4_u8(const Call& call, int64_t begin, int64_t end);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_KERNELS_H_
