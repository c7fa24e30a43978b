// Dense int8 times int8 activations: a lane multiplies 4 inputs of one output.
//
//   codes int8 [panels, n_in / 4, 16, 4], scales float32 [panels, 16]
#include "dense_ints.h"
#include "dense_kernels.h"
#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

struct DenseInt8 {
  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const int8_t* codes = x.codes + row * x.padded;
    const int64_t steps = call.leaf->arrays[0].shape[1];
    const float* scales = static_cast<const float*>(call.leaf->arrays[1].data);
    const int8_t* w[kStreams];
    Ints sums[kStreams][kBatch];
    for (int s = 0; s < kStreams; ++s) {
      prefetch_row_scales(scales, panels[s]);
      w[s] = static_cast<const int8_t*>(call.leaf->arrays[0].data) +
             panels[s] * steps * 4 * kPanel;
      for (int b = 0; b < kBatch; ++b) sums[s][b] = int_zeros();
    }
    for (int r = 0; r < x.n_panel_runs; ++r) {
      const int64_t run_end = x.panel_runs[r].last * 4;
      const int64_t last = run_end < steps ? run_end : steps;
      for (int64_t t = x.panel_runs[r].first * 4; t < last; ++t) {
#pragma GCC unroll 16
        for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 16
          for (int b = 0; b < kBatch; ++b) {
            sums[s][b] = dot4_codes(sums[s][b], w[s] + 4 * kPanel * t,
                                    load_four(codes + b * x.padded + 4 * t));
          }
        }
      }
    }
    Floats results[kStreams][kBatch];
    for (int s = 0; s < kStreams; ++s) {
      const Floats scale = load(scales + panels[s] * kPanel);
      for (int b = 0; b < kBatch; ++b)
        results[s][b] = mul(to_floats(sums[s][b]), scale);
    }
    store_scaled(call, panels, row, results);
  }
};

}  // namespace

void dense_int8(const Call& call, int64_t begin, int64_t end) {
  sweep<DenseInt8>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
