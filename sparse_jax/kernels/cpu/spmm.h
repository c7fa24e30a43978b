// Prefill where few weights are kept: lanes are rows of the batch, and every kept
// weight costs one multiplication of 64 of them.
#ifndef SPARSE_JAX_KERNELS_CPU_SPMM_H_
#define SPARSE_JAX_KERNELS_CPU_SPMM_H_

#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

constexpr int64_t kLanes = 64;        // rows of the batch at a time
constexpr int64_t kSpmmInputs = 64;  // of a tile: its rows and weights fit the L1
constexpr int kLaneGroups = kLanes / 16;

// The weights of one panel and tile, and which inputs every output keeps, ascending.
struct KeptWeights {
  alignas(64) float tile[kSpmmInputs * kPanel];  // [input][output]
  int count[kPanel];
  uint8_t input[kPanel][kSpmmInputs + 64];  // room for whole registers
};

// x transposed: [rows / 64][inputs][64], zero past the batch.
inline void transpose_rows(const Activations& x, int64_t first, int64_t n,
                           float* lanes) {
  const int64_t blocks = ceil_div(x.batch, kLanes);
  memset(lanes, 0, blocks * n * kLanes * sizeof(float));
  for (int64_t row = 0; row < x.batch; ++row) {
    const float* values = x.values + row * x.padded + first;
    float* out = lanes + row / kLanes * n * kLanes + row % kLanes;
    for (int64_t k = 0; k < n; ++k) out[k * kLanes] = values[k];
  }
}

// Adds one output's kept weights times 64 rows to sums[64].
inline void add_output(const KeptWeights& kept, int64_t output, const float* lanes,
                       float* sums) {
  // Two sets of sums where the registers hold them: one would wait for itself.
  constexpr int kSets = kGemmRows > 8 ? 2 : 1;
  const float* weights = kept.tile + output;
  const uint8_t* input = kept.input[output];
  const int count = kept.count[output];
  Floats sum[kSets][kLaneGroups];
  for (int j = 0; j < kLaneGroups; ++j) {
    sum[0][j] = load(sums + 16 * j);
    for (int set = 1; set < kSets; ++set) sum[set][j] = zeros();
  }
  const auto add_one = [&](int i, Floats(&set)[kLaneGroups]) {
    const Floats w = set1(weights[input[i] * kPanel]);
    const float* x = lanes + input[i] * kLanes;
#pragma GCC unroll 4
    for (int j = 0; j < kLaneGroups; ++j) set[j] = fma(w, load(x + 16 * j), set[j]);
  };
  int i = 0;
  for (; i + kSets <= count; i += kSets) {
#pragma GCC unroll 2
    for (int set = 0; set < kSets; ++set) add_one(i + set, sum[set]);
  }
  if (i < count) add_one(i, sum[0]);
  for (int j = 0; j < kLaneGroups; ++j) {
    store(sums + 16 * j, kSets == 1 ? sum[0][j] : add(sum[0][j], sum[kSets - 1][j]));
  }
}

// y of one panel from sums [rows / 64][16 outputs][64].
inline void store_lanes(const Call& call, int64_t panel, const float* sums) {
  const int64_t n_out = call.leaf->n_out, first = panel * kPanel;
  const int64_t outputs = n_out - first < kPanel ? n_out - first : kPanel;
  for (int64_t row = 0; row < call.x->batch; ++row) {
    const float* lane = sums + row / kLanes * kPanel * kLanes + row % kLanes;
    for (int64_t r = 0; r < outputs; ++r) {
      call.y[row * n_out + first + r] = lane[r * kLanes];
    }
  }
}

// A Kernel is a struct with
//   static void find_kept(const Leaf&, int64_t panel, int64_t first, int64_t last,
//                         KeptWeights*);
//   static void prefetch_tile(const Leaf&, int64_t panel, int64_t first, int64_t last);
// for the inputs [first, last), at most 64 of them; `first` is a multiple of 64.
template <class Kernel>
inline void spmm(const Call& call, int64_t begin, int64_t end) {
  const Activations& x = *call.x;
  const int64_t blocks = ceil_div(x.batch, kLanes);
  const int64_t panel_sums = blocks * kPanel * kLanes;
  float* sums = static_cast<float*>(calloc((end - begin) * panel_sums, sizeof(float)));
  float* lanes =
      static_cast<float*>(malloc(blocks * kSpmmInputs * kLanes * sizeof(float)));
  KeptWeights kept;
  for (int r = 0; r < x.n_superblock_runs; ++r) {
    const int64_t run_end = x.superblock_runs[r].last * kSuperblock;
    const int64_t stop = run_end < x.n_in ? run_end : x.n_in;
    int64_t first = x.superblock_runs[r].first * kSuperblock;
    for (; first < stop; first += kSpmmInputs) {
      const int64_t n = stop - first < kSpmmInputs ? stop - first : kSpmmInputs;
      transpose_rows(x, first, n, lanes);
      for (int64_t p = begin; p < end; ++p) {
        if (p + 1 < end) {
          Kernel::prefetch_tile(*call.leaf, call.panels[p + 1], first, first + n);
        }
        Kernel::find_kept(*call.leaf, call.panels[p], first, first + n, &kept);
        float* out = sums + (p - begin) * panel_sums;
        for (int64_t block = 0; block < blocks; ++block) {
          for (int64_t o = 0; o < kPanel; ++o, out += kLanes) {
            add_output(kept, o, lanes + block * n * kLanes, out);
          }
        }
      }
    }
  }
  for (int64_t p = begin; p < end; ++p) {
    store_lanes(call, call.panels[p], sums + (p - begin) * panel_sums);
  }
  free(lanes);
  free(sums);
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SPMM_H_
