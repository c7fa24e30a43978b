// Floats, exactly N of every 16 inputs; layouts in n16_layout.h.
//
//   n16_float32   blocks uint8 [panels, superblocks, N, 32 + 256]
//   n16_bfloat16  blocks uint8 [panels, superblocks, N, 32 + 128]
#include <string.h>

#include "gemm.h"
#include "n16_kernels.h"
#include "n16_superblock.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

namespace {

inline float widen(float value) { return value; }

inline float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline int value_index(const float*, int half, int j, int lane) {
  return 32 * half + 8 * j + lane;
}

inline int value_index(const uint16_t*, int half, int j, int lane) {
  return 32 * half + 16 * (j / 2) + 2 * lane + j % 2;
}

template <typename Value, int kSlots>
struct N16Floats {
  static constexpr bool kCodes = false;
  static constexpr int kStep = kIdBytes + kStepWeights * sizeof(Value);

  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    for (int b = 0; b < kBatch; ++b) run_row(call, panels, row + b);
  }

  template <int kStreams>
  static void run_row(const Call& call, const int64_t (&panels)[kStreams],
                      int64_t row) {
    const Activations& x = *call.x;
    const int slots = static_cast<int>(call.leaf->arrays[0].shape[2]);
    const uint8_t* blocks[kStreams];
    FloatSums sums[kStreams];
    for (int s = 0; s < kStreams; ++s) {
      blocks[s] = panel_blocks(*call.leaf, panels[s]);
      sums[s] = no_float_sums();
    }
    for (int r = 0; r < x.n_superblock_runs; ++r) {
      const Run run = x.superblock_runs[r];
      for (int64_t i = run.first; i < run.last; ++i) {
        const int64_t first = row * x.padded + i * kSuperblock;
        const uint8_t* at[kStreams];
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) at[s] = blocks[s] + i * slots * kStep;
        const uint8_t* planes = x.planes == nullptr ? nullptr : x.planes + 4 * first;
        add_float_superblock<Value, kSlots>(at, slots, x.values + first, planes, sums);
      }
    }
    for (int s = 0; s < kStreams; ++s) {
      store_outputs(call, row, panels[s], total(sums[s], slots % 4 != 0));
    }
  }

  static const float* expand(const Leaf& leaf, int64_t panel, int64_t first,
                             int64_t last, float* tile) {
    const int slots = static_cast<int>(leaf.arrays[0].shape[2]);
    memset(tile, 0, (last - first) * kPanel * sizeof(float));
    const uint8_t* step =
        panel_blocks(leaf, panel) + first / kSuperblock * slots * kStep;
    for (int64_t k = 0; k < last - first; k += kSuperblock) {
      float* superblock = tile + k * kPanel;
      for (int i = 0; i < slots; ++i, step += kStep) {
        if (i < slots / 4 * 4) {
          expand_quad(step, superblock + i / (slots / 4) * 16 * kPanel);
        } else {
          expand_rest(step, superblock);
        }
      }
    }
    return tile;
  }

  static void expand_quad(const uint8_t* step, float* tile) {
    const Value* values = reinterpret_cast<const Value*>(step + kIdBytes);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        for (int lane = 0; lane < 8; ++lane) {
          const int id = nibble(step[16 * (lane / 4) + 4 * j + lane % 4], half);
          tile[id * kPanel + 8 * half + lane] =
              widen(values[value_index(values, half, j, lane)]);
        }
      }
    }
  }

  static void expand_rest(const uint8_t* step, float* tile) {
    const Value* values = reinterpret_cast<const Value*>(step + kIdBytes);
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        for (int lane = 0; lane < 8; ++lane) {
          const int output = 4 * j + lane % 4;
          const int input =
              16 * (2 * half + lane / 4) + nibble(step[16 * (lane / 4) + output], half);
          tile[input * kPanel + output] =
              widen(values[value_index(values, half, j, lane)]);
        }
      }
    }
  }
};

template <typename Value>
void run_floats(const Call& call, int64_t begin, int64_t end) {
  if (call.x->batch >= 8) return gemm<N16Floats<Value, 0>>(call, begin, end);
  switch (call.leaf->arrays[0].shape[2]) {
    case 4:
      return sweep<N16Floats<Value, 4>>(call, begin, end);
    case 5:
      return sweep<N16Floats<Value, 5>>(call, begin, end);
    case 8:
      return sweep<N16Floats<Value, 8>>(call, begin, end);
    default:
      return sweep<N16Floats<Value, 0>>(call, begin, end);
  }
}

}  // namespace

void n16_float32(const Call& call, int64_t begin, int64_t end) {
  run_floats<float>(call, begin, end);
}

void n16_bfloat16(const Call& call, int64_t begin, int64_t end) {
  run_floats<uint16_t>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
