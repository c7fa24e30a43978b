// The limit of every product that reads its weights once.
#ifndef SPARSE_JAX_KERNELS_CPU_BANDWIDTH_H_
#define SPARSE_JAX_KERNELS_CPU_BANDWIDTH_H_

#include <cstdint>

#include "kernel.h"

namespace sparse_jax {

// Bytes per second that `threads` threads read from `bytes` of fresh memory; the best
// of `repeats`. `bytes` should exceed the last-level cache a few times.
double read_bandwidth(int64_t bytes, int repeats, int threads,
                      const KernelTable& kernels);

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_BANDWIDTH_H_
