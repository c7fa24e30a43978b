// The tiles of one quad in plain loops.
#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_

#include "group_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// What kShift of the activations adds is in the leaf (excess); a sum over a part of the
// tiles takes it away at once (kPart).
template <bool kZeros, bool kPart, int kBatch>
struct QuadSums {
  float sums[kBatch][4] = {};

  void add(const Tiles& tiles, int64_t tile, const uint8_t* x, int64_t x_stride) {
    const uint8_t* codes = tiles.codes + tile * kTileBytes;
    for (int slot = 0; slot < kTileGroups; ++slot) {
      const int r = slot % 4, e = slot / 4;
      const uint8_t* bytes = codes + 32 * e + 16 * (r % 2);
      int zero = kMiddle;
      if (kZeros) zero = (tiles.zeros[tile * kTileZeros + r] >> (4 * e)) & 15;
      const float scale =
          bits_to_float(static_cast<uint32_t>(tiles.scales[tile * kTileGroups + slot])
                        << 16);
      const uint8_t* x_group = x + kGroup * tiles.ids[tile * kTileGroups + slot];
      for (int b = 0; b < kBatch; ++b) {
        int32_t sum = 0;
        for (int j = 0; j < kGroup; ++j) {
          const int weight = ((bytes[j] >> (r < 2 ? 0 : 4)) & 15) - zero;
          sum += weight * (x_group[b * x_stride + j] - (kPart ? 128 : 0));
        }
        sums[b][r] += scale * static_cast<float>(sum);
      }
    }
  }

  void finish(int b, float* out) const {
    for (int r = 0; r < 4; ++r) out[r] = sums[b][r];
  }
};

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_
