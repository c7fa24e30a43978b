// Prefill with sparse weights: lanes are rows of the batch, and every kept weight costs
// one multiplication of up to 64 of them.
#ifndef SPARSE_JAX_KERNELS_CPU_SPMM_H_
#define SPARSE_JAX_KERNELS_CPU_SPMM_H_

#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

constexpr int64_t kLanes = 64;  // rows of the batch at a time
// Inputs of a tile: its rows and weights fit the first-level cache.
constexpr int64_t kSpmmInputs = kSuperblock;
constexpr int64_t kTileLanes = kSpmmInputs * kLanes;
// Rows that share what is found of the weights, and panels that share a tile's rows:
// their sums fit the second-level cache.
constexpr int64_t kSpmmRows = 256;
constexpr int64_t kSpmmPanels = 8;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// One output of 16 * kGroups rows. Several sets of sums where the registers hold them:
// one would wait for itself.
template <int kGroups>
struct LaneSums {
  static constexpr int kSets = kGemmRows > 8 ? 16 / kGroups : 4 / kGroups;
  Floats sum[kSets][kGroups];

  explicit LaneSums(const float* sums) {
#pragma GCC unroll 4
    for (int j = 0; j < kGroups; ++j) sum[0][j] = load(sums + 16 * j);
#pragma GCC unroll 16
    for (int set = 1; set < kSets; ++set) {
#pragma GCC unroll 4
      for (int j = 0; j < kGroups; ++j) sum[set][j] = zeros();
    }
  }

  void add_product(int set, const Floats& w, const float* x) {
#pragma GCC unroll 4
    for (int j = 0; j < kGroups; ++j) {
      sum[set][j] = fma(w, load(x + 16 * j), sum[set][j]);
    }
  }

  void store_to(float* sums) const {
#pragma GCC unroll 4
    for (int j = 0; j < kGroups; ++j) {
      Floats total = sum[0][j];
#pragma GCC unroll 16
      for (int set = 1; set < kSets; ++set) total = add(total, sum[set][j]);
      store(sums + 16 * j, total);
    }
  }
};

// Whole registers in whole lines of the cache; `count` is a multiple of 16.
inline float* aligned_floats(int64_t count) {
  return static_cast<float*>(aligned_alloc(64, count * sizeof(float)));
}

// The rows [row, row + rows) of x transposed: [tiles][rows / 64][inputs][64], zero past
// the rows and the inputs. The tiles that no active input lies in stay as they were.
inline void transpose_rows(const Activations& x, int64_t row, int64_t rows,
                           float* lanes) {
  const int64_t size = ceil_div(rows, kLanes) * kTileLanes;
  for (int r = 0; r < x.n_superblock_runs; ++r) {
    const Run run = x.superblock_runs[r];
    for (int64_t tile = run.first; tile < run.last; ++tile) {
      const int64_t first = tile * kSpmmInputs;
      const int64_t n = min_of(x.n_in - first, kSpmmInputs);
      memset(lanes + tile * size, 0, size * sizeof(float));
      for (int64_t i = 0; i < rows; ++i) {
        const float* values = x.values + (row + i) * x.padded + first;
        float* out = lanes + tile * size + i / kLanes * kTileLanes + i % kLanes;
        for (int64_t k = 0; k < n; ++k) out[k * kLanes] = values[k];
      }
    }
  }
}

// y of one panel and the rows [row, row + rows) from sums [rows / 64][16 outputs][64].
inline void store_lanes(const Call& call, int64_t panel, int64_t row, int64_t rows,
                        const float* sums) {
  const int64_t n_out = call.leaf->n_out, first = panel * kPanel;
  const int64_t outputs = min_of(n_out - first, kPanel);
  for (int64_t i = 0; i < rows; ++i) {
    const float* lane = sums + i / kLanes * kPanel * kLanes + i % kLanes;
    float* y = call.y + (row + i) * n_out + first;
    for (int64_t o = 0; o < outputs; ++o) y[o] = lane[o * kLanes];
  }
}

template <class Tile, int kGroups>
inline void add_outputs(const Tile& tile, const float* lanes, float* sums) {
  for (int o = 0; o < kPanel; ++o) {
    LaneSums<kGroups> output(sums + o * kLanes);
    tile.add_output(o, lanes, &output);
    output.store_to(sums + o * kLanes);
  }
}

// sums[rows / 64][16 outputs][64] += a tile's weights times its rows.
template <class Tile>
inline void add_tile(const Tile& tile, const float* lanes, int64_t rows, float* sums) {
  for (; rows > 0; rows -= kLanes, lanes += kTileLanes, sums += kPanel * kLanes) {
    if (rows > 48) {
      add_outputs<Tile, 4>(tile, lanes, sums);
    } else if (rows > 32) {
      add_outputs<Tile, 3>(tile, lanes, sums);
    } else if (rows > 16) {
      add_outputs<Tile, 2>(tile, lanes, sums);
    } else {
      add_outputs<Tile, 1>(tile, lanes, sums);
    }
  }
}

// A Tile is the weights of one panel for 64 inputs, with
//   void load(const Leaf&, int64_t panel, int64_t first, int64_t last);
//   template <int kGroups>
//   void add_output(int output, const float* lanes, LaneSums<kGroups>* sums) const;
// for the inputs [first, last); `first` is a multiple of 64, `lanes` [64 inputs][64].
template <class Tile>
inline void add_panels(const Call& call, const int32_t* panels, int64_t n_panels,
                       const float* lanes, int64_t rows, float* sums) {
  const Activations& x = *call.x;
  const int64_t blocks = ceil_div(rows, kLanes);
  Tile tile;
  for (int r = 0; r < x.n_superblock_runs; ++r) {
    const Run run = x.superblock_runs[r];
    for (int64_t i = run.first; i < run.last; ++i) {
      const int64_t first = i * kSpmmInputs;
      const int64_t last = min_of(first + kSpmmInputs, x.n_in);
      for (int64_t p = 0; p < n_panels; ++p) {
        tile.load(*call.leaf, panels[p], first, last);
        add_tile(tile, lanes + i * blocks * kTileLanes, rows,
                 sums + p * blocks * kPanel * kLanes);
      }
    }
  }
}

template <class Tile>
inline void spmm(const Call& call, int64_t begin, int64_t end) {
  const Activations& x = *call.x;
  const int64_t blocks = ceil_div(min_of(x.batch, kSpmmRows), kLanes);
  const int64_t panel_sums = blocks * kPanel * kLanes;
  float* lanes = aligned_floats(ceil_div(x.n_in, kSpmmInputs) * blocks * kTileLanes);
  float* sums = aligned_floats(kSpmmPanels * panel_sums);
  for (int64_t row = 0; row < x.batch; row += kSpmmRows) {
    const int64_t rows = min_of(x.batch - row, kSpmmRows);
    const int64_t stride = ceil_div(rows, kLanes) * kPanel * kLanes;
    transpose_rows(x, row, rows, lanes);
    for (int64_t first = begin; first < end; first += kSpmmPanels) {
      const int32_t* panels = call.panels + first;
      const int64_t n_panels = min_of(end - first, kSpmmPanels);
      memset(sums, 0, n_panels * stride * sizeof(float));
      add_panels<Tile>(call, panels, n_panels, lanes, rows, sums);
      for (int64_t p = 0; p < n_panels; ++p) {
        store_lanes(call, panels[p], row, rows, sums + p * stride);
      }
    }
  }
  free(lanes);
  free(sums);
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SPMM_H_
