// Unstructured floats: a mask of 16 outputs for every input, and the kept values.
//
//   masks    uint16 [panels, ceil(n_in / 16), 16]: bit r of an input's mask says that
//            output r of the panel keeps it
//   offsets  uint32 [panels * superblocks + 1]: where the values of 16 outputs x 64
//            inputs start
//   values   [kept + 32]: by panel, input, output
#include "bitmask_kernels.h"

#include <string.h>

#include "bitmask_expand.h"
#include "gemm.h"
#include "spmm.h"
#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// Values that 16 inputs keep.
inline int64_t count_block(const uint16_t* masks) {
  uint64_t words[4];
  memcpy(words, masks, sizeof words);
  return __builtin_popcountll(words[0]) + __builtin_popcountll(words[1]) +
         __builtin_popcountll(words[2]) + __builtin_popcountll(words[3]);
}

template <typename Value>
struct Bitmask {
  static constexpr bool kCodes = false;

  // Where one panel is being read.
  struct Cursor {
    const uint16_t* masks;
    const uint32_t* offsets;
    const Value* all_values;
    const Value* values;
    int64_t block_bytes;  // of the values of 16 inputs, and a quarter more

    // All the lines that a block reads, some blocks ahead: of only a part of them, the
    // hardware's prefetchers would miss the others.
    void prefetch(int64_t block) const {
      prefetch_ahead<kPrefetch / 8>(masks + 16 * block, 32);
      // Not unrolled: it is as short as the branches that unrolling needs.
      const char* first = reinterpret_cast<const char*>(values) + kPrefetch;
      for (int64_t i = 0; i < block_bytes; i += 64) __builtin_prefetch(first + i, 0, 0);
    }

    // Goes to an input panel of 16.
    void seek(int64_t block) {
      values = all_values + offsets[block / 4];
      for (int64_t i = block / 4 * 4; i < block; ++i) {
        values += count_block(masks + 16 * i);
      }
    }
  };

  static Cursor start(const Leaf& leaf, int64_t panel) {
    const Array& masks = leaf.arrays[0];
    const Array& values = leaf.arrays[2];
    const auto* first = static_cast<const Value*>(values.data);
    const int64_t bytes = values.shape[0] * static_cast<int64_t>(sizeof(Value));
    return {static_cast<const uint16_t*>(masks.data) + panel * masks.shape[1] * 16,
            static_cast<const uint32_t*>(leaf.arrays[1].data) +
                panel * ceil_div(leaf.n_in, kSuperblock),
            first, first, bytes * 5 / 4 / (masks.shape[0] * masks.shape[1])};
  }

  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const float* values = x.values + row * x.padded;
    Cursor at[kStreams];
    Floats sums[kStreams][kBatch][2];
    for (int s = 0; s < kStreams; ++s) {
      at[s] = start(*call.leaf, panels[s]);
      for (int b = 0; b < kBatch; ++b) sums[s][b][0] = sums[s][b][1] = zeros();
    }
    for (int r = 0; r < x.n_panel_runs; ++r) {
      const Run run = x.panel_runs[r];
      for (int s = 0; s < kStreams; ++s) at[s].seek(run.first);
      for (int64_t block = run.first; block < run.last; ++block) {
        add_block(at, block, values + 16 * block, x.padded, sums);
      }
    }
    for (int s = 0; s < kStreams; ++s) {
      for (int b = 0; b < kBatch; ++b) {
        store_outputs(call, row + b, panels[s], add(sums[s][b][0], sums[s][b][1]));
      }
    }
  }

  template <int kStreams, int kBatch>
  static inline void add_block(Cursor (&at)[kStreams], int64_t block, const float* x,
                               int64_t x_stride, Floats (&sums)[kStreams][kBatch][2]) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) at[s].prefetch(block);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        const unsigned mask = at[s].masks[16 * block + i];
        const Floats w = expand_values(mask, at[s].values);
        at[s].values += count_bits(mask);
#pragma GCC unroll 4
        for (int b = 0; b < kBatch; ++b) {
          sums[s][b][i % 2] = fma(w, set1(x[b * x_stride + i]), sums[s][b][i % 2]);
        }
      }
    }
  }

  // 64 inputs of a panel: too short for the hardware's prefetchers.
  static void prefetch_superblock(const Leaf& leaf, int64_t panel, int64_t index) {
    const Cursor at = start(leaf, panel);
    __builtin_prefetch(at.masks + kSuperblock * index);
    __builtin_prefetch(at.masks + kSuperblock * index + 32);
    const Value* values = at.all_values + at.offsets[index];
    const Value* last = at.all_values + at.offsets[index + 1];
    for (; values < last; values += 64 / sizeof(Value)) __builtin_prefetch(values);
  }

  static const float* expand(const Leaf& leaf, int64_t panel, int64_t first,
                             int64_t last, float* tile) {
    const int64_t next = panel + 1 < panels_of(leaf) ? panel + 1 : panel;
    Cursor at = start(leaf, panel);
    at.seek(first / 16);
    for (int64_t k = first; k < last; ++k) {
      if (k % kSuperblock == 0) prefetch_superblock(leaf, next, k / kSuperblock);
      const unsigned mask = at.masks[k];
      store(tile + (k - first) * kPanel, expand_values(mask, at.values));
      at.values += count_bits(mask);
    }
    return tile;
  }
};

// The weights of one panel and 64 inputs, and the inputs that every output keeps.
template <typename Value>
struct BitmaskTile {
  alignas(64) float weights[kSpmmInputs * kPanel];  // [input][output]
  int count[kPanel];
  uint8_t input[kPanel][kSpmmInputs];

  void load(const Leaf& leaf, int64_t panel, int64_t first, int64_t last) {
    Bitmask<Value>::expand(leaf, panel, first, last, weights);
    const uint16_t* masks = Bitmask<Value>::start(leaf, panel).masks + first;
    uint16_t padded[kSpmmInputs] = {};
    if (last - first < kSpmmInputs) {
      memcpy(padded, masks, (last - first) * sizeof(uint16_t));
      masks = padded;
    }
    uint64_t inputs[kPanel];
    transpose_masks(masks, inputs);
    for (int o = 0; o < kPanel; ++o) count[o] = list_bits(inputs[o], input[o]);
  }

  template <int kGroups>
  void add_output(int output, const float* lanes, LaneSums<kGroups>* sums) const {
    constexpr int kSets = LaneSums<kGroups>::kSets;
    const int n = count[output];
    int i = 0;
    for (; i + kSets <= n; i += kSets) {
#pragma GCC unroll 16
      for (int set = 0; set < kSets; ++set) {
        add_input(output, i + set, set, lanes, sums);
      }
    }
#pragma GCC unroll 16
    for (int set = 0; set < kSets - 1; ++set, ++i) {
      if (i == n) break;
      add_input(output, i, set, lanes, sums);
    }
  }

  template <int kGroups>
  void add_input(int output, int i, int set, const float* lanes,
                 LaneSums<kGroups>* sums) const {
    // In bytes, so that one register addresses both: a row of lanes is four of weights.
    const int64_t at = input[output][i] * static_cast<int64_t>(sizeof(float) * kPanel);
    const char* w = reinterpret_cast<const char*>(weights + output) + at;
    const char* x = reinterpret_cast<const char*>(lanes) + kLanes / kPanel * at;
    sums->add_product(set, set1(*reinterpret_cast<const float*>(w)),
                      reinterpret_cast<const float*>(x));
  }
};

// Whether working per kept weight beats expanding: its lanes come in blocks of 64 rows,
// and finding the kept weights costs as much as some rows do. Measured at 4096 x 4096.
bool is_sparse_enough(const Call& call) {
  const Leaf& leaf = *call.leaf;
  const double kept = static_cast<double>(leaf.arrays[2].shape[0]);
  const double density = kept / (static_cast<double>(leaf.n_out) * leaf.n_in);
  const int64_t lanes = ceil_div(call.x->batch, kLanes) * kLanes;
  const double work = density * static_cast<double>(lanes + 48);
  return density < 0.51 && work < 0.9 * static_cast<double>(call.x->batch);
}

template <typename Value>
void run_bitmask(const Call& call, int64_t begin, int64_t end) {
  if (call.x->batch >= 32 && is_sparse_enough(call)) {
    return spmm<BitmaskTile<Value>>(call, begin, end);
  }
  if (call.x->batch >= 8) return gemm<Bitmask<Value>>(call, begin, end);
  sweep<Bitmask<Value>>(call, begin, end);
}

}  // namespace

void bitmask_float32(const Call& call, int64_t begin, int64_t end) {
  run_bitmask<float>(call, begin, end);
}

void bitmask_bfloat16(const Call& call, int64_t begin, int64_t end) {
  run_bitmask<uint16_t>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
