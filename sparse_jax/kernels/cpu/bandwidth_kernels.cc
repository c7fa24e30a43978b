#include "bandwidth_kernels.h"

#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

float read_floats(const float* values, int64_t n) {
  // Two streams, as the products read their weights.
  const int64_t half = n / 2;
  Floats sums[4] = {zeros(), zeros(), zeros(), zeros()};
  for (int64_t i = 0; i + 32 <= half; i += 32) {
    sums[0] = add(sums[0], load(values + i));
    sums[1] = add(sums[1], load(values + half + i));
    sums[2] = add(sums[2], load(values + i + 16));
    sums[3] = add(sums[3], load(values + half + i + 16));
  }
  float lanes[16];
  store(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  return sum;
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
