// Dense floats, in panels of 16 outputs: lane = output.
//
//   dense_float32   values [panels, n_in, 16]: the 16 weights of one input together
//   dense_bfloat16  values [panels, n_in / 2, 16, 2]: the 16 pairs of two inputs
#include "dense_kernels.h"

#include "gemm.h"
#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

struct DenseFloat32 {
  static constexpr bool kCodes = false;
  using Value = float;

  static const float* weights(const Leaf& leaf, int64_t panel) {
    return static_cast<const float*>(leaf.arrays[0].data) + panel * leaf.n_in * kPanel;
  }

  // Two inputs; only one where n_in is odd and this is the last.
  static void load_step(const float* step, bool both, Floats (&w)[2]) {
    w[0] = load(step);
    w[1] = both ? load(step + kPanel) : zeros();
  }

  static const float* expand(const Leaf& leaf, int64_t panel, int64_t first, int64_t,
                             float*) {
    return weights(leaf, panel) + first * kPanel;
  }
};

struct DenseBfloat16 {
  static constexpr bool kCodes = false;
  using Value = uint16_t;

  static const uint16_t* weights(const Leaf& leaf, int64_t panel) {
    const Array& values = leaf.arrays[0];
    return static_cast<const uint16_t*>(values.data) +
           panel * values.shape[1] * 2 * kPanel;
  }

  static void load_step(const uint16_t* step, bool, Floats (&w)[2]) {
    load_bfloat16_pairs(step, &w[0], &w[1]);
  }

  static const float* expand(const Leaf& leaf, int64_t panel, int64_t first,
                             int64_t last, float* tile) {
    const uint16_t* step = weights(leaf, panel) + first * kPanel;
    // Where n_in is odd, this writes one input more, for which a tile has room.
    for (int64_t k = 0; k < last - first; k += 2) {
      Floats w[2];
      load_step(step + k * kPanel, true, w);
      store(tile + k * kPanel, w[0]);
      store(tile + (k + 1) * kPanel, w[1]);
    }
    return tile;
  }
};

// Weights as floats, activations as they are; two inputs at a time.
template <class Type>
struct DenseFloats {
  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const float* values = x.values + row * x.padded;
    const typename Type::Value* w[kStreams];
    // The two inputs have sums of their own: more of them hide the latency of fma.
    Floats sums[kStreams][kBatch][2];
    for (int s = 0; s < kStreams; ++s) {
      w[s] = Type::weights(*call.leaf, panels[s]);
      for (int b = 0; b < kBatch; ++b) sums[s][b][0] = sums[s][b][1] = zeros();
    }
    for (int r = 0; r < x.n_panel_runs; ++r) {
      const int64_t run_end = x.panel_runs[r].last * 16;
      const int64_t last = run_end < x.n_in ? run_end : x.n_in;
      int64_t k = x.panel_runs[r].first * 16;
      for (; k + 2 <= last; k += 2) {
        add_inputs(w, k, true, values, x.padded, sums);
      }
      if (k < last) add_inputs(w, k, false, values, x.padded, sums);
    }
    for (int s = 0; s < kStreams; ++s) {
      for (int b = 0; b < kBatch; ++b) {
        store_outputs(call, row + b, panels[s], add(sums[s][b][0], sums[s][b][1]));
      }
    }
  }

  template <int kStreams, int kBatch>
  static inline void add_inputs(const typename Type::Value* const (&w)[kStreams],
                                int64_t k, bool both, const float* x, int64_t x_stride,
                                Floats (&sums)[kStreams][kBatch][2]) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      Floats w_k[2];
      Type::load_step(w[s] + kPanel * k, both, w_k);
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          sums[s][b][i] = fma(w_k[i], set1(x[b * x_stride + k + i]), sums[s][b][i]);
        }
      }
    }
  }
};

}  // namespace

void dense_float32(const Call& call, int64_t begin, int64_t end) {
  // The weights are a tile as they lie: the micro-kernel serves any batch.
  if (call.x->batch > 1) return gemm<DenseFloat32>(call, begin, end);
  sweep<DenseFloats<DenseFloat32>>(call, begin, end);
}

void dense_bfloat16(const Call& call, int64_t begin, int64_t end) {
  if (call.x->batch >= 8) return gemm<DenseBfloat16>(call, begin, end);
  sweep<DenseFloats<DenseBfloat16>>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
