// y = x W^T: the one entry of the engine, without Python or JAX.
#ifndef SPARSE_JAX_KERNELS_CPU_DOT_H_
#define SPARSE_JAX_KERNELS_CPU_DOT_H_

#include <string>
#include <vector>

#include "kernel.h"
#include "pool.h"

namespace sparse_jax {

// "portable", "avx2" or "avx512", or empty for the best that this CPU has (or what the
// environment's SPARSE_JAX_ISA says). Null, with a sentence in `error`, where the name
// is unknown or the CPU lacks the instructions.
const KernelTable* find_kernels(const std::string& isa, std::string* error);
// Those that this CPU and this build have, best first.
std::vector<std::string> supported_isas();
// The name behind the empty one.
std::string default_isa(std::string* error);

struct Dot {
  const Leaf* leaf;
  const float* x;  // [batch, n_in]
  int64_t batch;
  const uint8_t* rows;  // [ceil(n_out / 16)], 0 = inactive output panel; null = all
  const uint8_t* cols;  // [ceil(n_in / 16)], 0 = inactive input panel; null = all
  float* y;             // [batch, n_out]
};

// The content of the leaf must have passed `check` once; its sizes are checked here.
// Returns an error, or an empty string. Outputs of inactive panels are 0.
std::string dot(const Dot& call, const KernelTable& kernels, Pool& pool);

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_DOT_H_
