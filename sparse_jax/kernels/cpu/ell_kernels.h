#ifndef SPARSE_JAX_KERNELS_CPU_ELL_KERNELS_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_KERNELS_H_

#include "kernel.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

void ell_int8(const Call& call, int64_t begin, int64_t end);

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_KERNELS_H_
