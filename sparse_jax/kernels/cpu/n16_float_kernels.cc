// Floats, exactly N of every 16 inputs; layouts in n16_layout.h.
//
//   n16_float32   blocks uint8 [panels, superblocks, N, 32 + 256]
//   n16_bfloat16  blocks uint8 [panels, superblocks, N, 32 + 128]
#include <string.h>

#include "n16_kernels.h"
#include "n16_superblock.h"
#include "spmm.h"

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
};

// The weights of one superblock where they lie, and its ids as bytes.
template <typename Value, int kSlots>
struct N16Tile {
  static constexpr int kStep = kIdBytes + kStepWeights * sizeof(Value);

  const uint8_t* steps;
  int slots;
  uint8_t ids[kMaxSlots][2][kIdBytes];  // low nibbles, high ones

  void load(const Leaf& leaf, int64_t panel, int64_t first, int64_t) {
    slots = static_cast<int>(leaf.arrays[0].shape[2]);
    const int64_t at = first / kSuperblock * slots * kStep;
    const int64_t next = panel + 1 < panels_of(leaf) ? panel + 1 : panel;
    steps = panel_blocks(leaf, panel) + at;
    // Too short for the hardware's prefetchers.
    prefetch_ahead<0>(panel_blocks(leaf, next) + at, slots * kStep);
    for (int step = 0; step < slots; ++step) {
      for (int i = 0; i < kIdBytes; ++i) {
        const uint8_t byte = steps[step * kStep + i];
        ids[step][0][i] = byte & 15;
        ids[step][1][i] = byte >> 4;
      }
    }
  }

  template <int kGroups>
  void add_output(int output, const float* lanes, LaneSums<kGroups>* sums) const {
    constexpr int kSets = LaneSums<kGroups>::kSets;
    // Unrolled for whole blocks of the batch and the common N.
    const int n = kSlots > 0 && kGroups == 4 ? kSlots : slots;
    const int half = output / 8, lane = output % 8;
    const uint8_t* quad_ids = ids[0][half] + 16 * (lane / 4) + lane % 4;
    int step = 0;
#pragma GCC unroll 4
    for (int block = 0; block < 4; ++block, lanes += 16 * kLanes) {
#pragma GCC unroll 4
      for (int quad = 0; quad < n / 4; ++quad, ++step) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int input = quad_ids[kStepWeights * step + 4 * j];
          sums->add_product(j % kSets, set1(weight(step, half, j, lane)),
                            lanes + input * kLanes);
        }
      }
    }
    lanes -= kTileLanes;
#pragma GCC unroll 4
    for (int rest = 0; rest < n % 4; ++rest, ++step) {
#pragma GCC unroll 4
      for (int block = 0; block < 4; ++block) {
        const int input = ids[step][block / 2][16 * (block % 2) + output];
        const int lane = 4 * (block % 2) + output % 4;
        sums->add_product(block % kSets,
                          set1(weight(step, block / 2, output / 4, lane)),
                          lanes + (16 * block + input) * kLanes);
      }
    }
  }

  float weight(int step, int half, int j, int lane) const {
    const Value* values =
        reinterpret_cast<const Value*>(steps + step * kStep + kIdBytes);
    return widen(values[value_index(values, half, j, lane)]);
  }
};

template <typename Value, int kSlots>
void run_slots(const Call& call, int64_t begin, int64_t end) {
  if (call.x->batch >= 8) return spmm<N16Tile<Value, kSlots>>(call, begin, end);
  sweep<N16Floats<Value, kSlots>>(call, begin, end);
}

template <typename Value>
void run_floats(const Call& call, int64_t begin, int64_t end) {
  switch (call.leaf->arrays[0].shape[2]) {
    case 4:
      return run_slots<Value, 4>(call, begin, end);
    case 5:
      return run_slots<Value, 5>(call, begin, end);
    case 8:
      return run_slots<Value, 8>(call, begin, end);
    default:
      return run_slots<Value, 0>(call, begin, end);
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
