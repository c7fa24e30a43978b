// Prefill: many rows against a leaf whose weights are expanded to floats tile by tile.
//
// A tile is [inputs][16 outputs] floats, small enough for the first-level cache; its
// expansion costs nothing beside the rows that share it.
#ifndef SPARSE_JAX_KERNELS_CPU_GEMM_H_
#define SPARSE_JAX_KERNELS_CPU_GEMM_H_

#include <stdlib.h>

#include "kernel.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

constexpr int64_t kTileInputs = 256;

// Activations of one tile's inputs, kGemmRows at a time: [rows /
// kGemmRows][n][kGemmRows], so that the micro-kernel reads one stream. Rows past the
// batch are zero.
inline void pack_rows(const Activations& x, bool codes, int64_t first, int64_t n,
                      float* packed) {
  for (int64_t row = 0; row < x.batch; row += kGemmRows) {
    for (int64_t i = 0; i < kGemmRows; ++i) {
      float* out = packed + row * n + i;
      const int64_t at = (row + i) * x.padded + first;
      if (row + i >= x.batch) {
        for (int64_t k = 0; k < n; ++k) out[k * kGemmRows] = 0.0f;
      } else if (codes) {
        for (int64_t k = 0; k < n; ++k) out[k * kGemmRows] = x.codes[at + k];
      } else {
        for (int64_t k = 0; k < n; ++k) out[k * kGemmRows] = x.values[at + k];
      }
    }
  }
}

// sums[i][16] += x[k][i] * tile[k][16], for kGemmRows rows i.
inline void multiply_tile(const float* x, const float* tile, int64_t n, float* sums) {
  Floats sum[kGemmRows];
#pragma GCC unroll 16
  for (int i = 0; i < kGemmRows; ++i) sum[i] = load(sums + kPanel * i);
  for (int64_t k = 0; k < n; ++k) {
    const Floats w = load(tile + kPanel * k);
#pragma GCC unroll 16
    for (int i = 0; i < kGemmRows; ++i) {
      sum[i] = fma(w, set1(x[kGemmRows * k + i]), sum[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kGemmRows; ++i) store(sums + kPanel * i, sum[i]);
}

inline void copy_outputs(const Call& call, int64_t panel, int64_t rows,
                         const float* sums) {
  const int64_t n_out = call.leaf->n_out, first = panel * kPanel;
  const int64_t lanes = n_out - first < kPanel ? n_out - first : kPanel;
  for (int64_t row = 0; row < rows; ++row) {
    const float scale = call.x->scales == nullptr ? 1.0f : call.x->scales[row];
    float* y = call.y + row * n_out + first;
    for (int64_t i = 0; i < lanes; ++i) y[i] = scale * sums[kPanel * row + i];
  }
}

// A Kernel here is a struct with
//   static constexpr bool kCodes;   // multiply codes (then by their scale) or values
//   static const float* expand(const Leaf&, int64_t panel, int64_t first, int64_t last,
//                              float* tile);
// that writes the weights of the inputs [first, last) to `tile`, [last - first][16],
// or returns where they lie already. `first` is a multiple of 64; `last`, too, or n_in.
template <class Kernel>
inline void gemm(const Call& call, int64_t begin, int64_t end) {
  const Activations& x = *call.x;
  const int64_t rows = ceil_div(x.batch, kGemmRows) * kGemmRows;
  const int64_t sums_size = (end - begin) * rows * kPanel;
  float* sums = static_cast<float*>(calloc(sums_size, sizeof(float)));
  float* packed = static_cast<float*>(malloc(rows * kTileInputs * sizeof(float)));
  alignas(64) float tile[kTileInputs * kPanel];
  for (int r = 0; r < x.n_superblock_runs; ++r) {
    const int64_t run_end = x.superblock_runs[r].last * kSuperblock;
    const int64_t stop = run_end < x.n_in ? run_end : x.n_in;
    int64_t first = x.superblock_runs[r].first * kSuperblock;
    for (; first < stop; first += kTileInputs) {
      const int64_t n = stop - first < kTileInputs ? stop - first : kTileInputs;
      pack_rows(x, Kernel::kCodes, first, n, packed);
      for (int64_t p = begin; p < end; ++p) {
        const float* weights =
            Kernel::expand(*call.leaf, call.panels[p], first, first + n, tile);
        float* panel_sums = sums + (p - begin) * rows * kPanel;
        for (int64_t row = 0; row < rows; row += kGemmRows) {
          multiply_tile(packed + row * n, weights, n, panel_sums + row * kPanel);
        }
      }
    }
  }
  for (int64_t p = begin; p < end; ++p) {
    copy_outputs(call, call.panels[p], x.batch, sums + (p - begin) * rows * kPanel);
  }
  free(packed);
  free(sums);
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GEMM_H_
