// The tiles of one quad in plain loops.
#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_

#include "group_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// bfloat16 scales, and integers whose products are added up in integers: fewer than 512
// groups of 16 * 255 * 15 * 255 need more than 32 bits here.
struct FloatScales {
  static constexpr int kBytes = 2;  // of a scale
  using Sum = float;

  static void add(Sum* sum, int32_t product, const uint8_t* scale) {
    uint16_t bits;
    memcpy(&bits, scale, sizeof bits);
    *sum += bits_to_float(static_cast<uint32_t>(bits) << 16) *
            static_cast<float>(product);
  }
};

struct IntScales {
  static constexpr int kBytes = 1;
  using Sum = int64_t;

  static void add(Sum* sum, int32_t product, const uint8_t* scale) {
    *sum += int64_t{product} * *scale;
  }
};

// What kShift of the activations adds is in the leaf (excess); a sum over a part of the
// tiles takes it away at once (kPart).
template <class Scales, bool kZeros, bool kPart, int kBatch>
struct QuadSums {
  typename Scales::Sum sums[kBatch][4] = {};

  void add(const Tiles& tiles, int64_t tile, const uint8_t* x, int64_t x_stride) {
    const uint8_t* codes = tiles.codes + tile * kTileBytes;
    for (int slot = 0; slot < kTileGroups; ++slot) {
      const int r = slot % 4, e = slot / 4;
      const uint8_t* bytes = codes + 32 * e + 16 * (r % 2);
      int zero = kMiddle;
      if (kZeros) zero = (tiles.zeros[tile * kTileZeros + r] >> (4 * e)) & 15;
      const uint8_t* scale =
          tiles.scales + (tile * kTileGroups + slot) * Scales::kBytes;
      const uint8_t* x_group = x + kGroup * tiles.ids[tile * kTileGroups + slot];
      for (int b = 0; b < kBatch; ++b) {
        int32_t sum = 0;
        for (int j = 0; j < kGroup; ++j) {
          const int weight = ((bytes[j] >> (r < 2 ? 0 : 4)) & 15) - zero;
          sum += weight * (x_group[b * x_stride + j] - (kPart ? 128 : 0));
        }
        Scales::add(&sums[b][r], sum, scale);
      }
    }
  }

  void finish(int b, float* out) const {
    for (int r = 0; r < 4; ++r) out[r] = static_cast<float>(sums[b][r]);
  }
};

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_PORTABLE_H_
