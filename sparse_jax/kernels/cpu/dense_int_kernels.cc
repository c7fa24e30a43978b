// Dense integers times int8 activations: a lane multiplies 4 inputs of one output.
//
//   dense_int8  codes int8 [panels, n_in / 4, 16, 4], scales float32 [panels, 16]
//   dense_int4  codes uint8 [panels, groups * 16, 16, 4], scales bfloat16
//               [panels, groups, 16]: a byte holds inputs 8 t + j (low nibble) and
//               8 t + 4 + j, as code + 8; a group is 128 inputs
#include <string.h>

#include "dense_kernels.h"
#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

inline int32_t load_four(const int8_t* codes) {
  int32_t four;
  memcpy(&four, codes, sizeof four);
  return four;
}

template <int kStreams, int kBatch>
inline void store_scaled(const Call& call, const int64_t (&panels)[kStreams],
                         int64_t row, const Floats (&sums)[kStreams][kBatch]) {
  for (int s = 0; s < kStreams; ++s) {
    for (int b = 0; b < kBatch; ++b) {
      store_outputs(call, row + b, panels[s],
                    mul(sums[s][b], set1(call.x->scales[row + b])));
    }
  }
}

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

struct DenseInt4 {
  static constexpr int kSteps = 16;  // of 8 inputs, in a group

  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const int64_t groups = call.leaf->arrays[1].shape[1];
    const uint8_t* w[kStreams];
    const uint16_t* scales[kStreams];
    Floats results[kStreams][kBatch];
    for (int s = 0; s < kStreams; ++s) {
      w[s] = static_cast<const uint8_t*>(call.leaf->arrays[0].data) +
             panels[s] * groups * kSteps * 4 * kPanel;
      scales[s] = static_cast<const uint16_t*>(call.leaf->arrays[1].data) +
                  panels[s] * groups * kPanel;
      for (int b = 0; b < kBatch; ++b) results[s][b] = zeros();
    }
    for (int r = 0; r < x.n_superblock_runs; ++r) {
      // A group is two superblocks. Runs have gaps between them, so no two runs touch
      // the same group; its inactive inputs are zero.
      const int64_t last = (x.superblock_runs[r].last + 1) / 2;
      for (int64_t g = x.superblock_runs[r].first / 2; g < last; ++g) {
#pragma GCC unroll 16
        for (int s = 0; s < kStreams; ++s) {
          add_group<kBatch>(w[s] + g * kSteps * 4 * kPanel,
                            load_bfloat16(scales[s] + g * kPanel), x, row, g,
                            results[s]);
        }
      }
    }
    store_scaled(call, panels, row, results);
  }

  // results += scale * sum(code * x), where sum(code * x) is
  // sum((code + 8) * x) - 8 sum(x).
  template <int kBatch>
  static void add_group(const uint8_t* w, const Floats& scale, const Activations& x,
                        int64_t row, int64_t group, Floats (&results)[kBatch]) {
    const int8_t* codes = x.codes + row * x.padded + group * kScaleGroup;
    const int32_t* group_sums = x.group_sums + row * (x.padded / kScaleGroup) + group;
    Ints sums[kBatch];
    Pending pending[kBatch];
#pragma GCC unroll 16
    for (int b = 0; b < kBatch; ++b) {
      sums[b] = int_set1(-8 * group_sums[b * (x.padded / kScaleGroup)]);
    }
#pragma GCC unroll 16
    for (int first = 0; first < kSteps; first += kNibbleSteps) {
#pragma GCC unroll 16
      for (int b = 0; b < kBatch; ++b) pending[b] = no_pending();
#pragma GCC unroll 16
      for (int t = first; t < first + kNibbleSteps; ++t) {
        prefetch_ahead(w + 4 * kPanel * t, 4 * kPanel);
#pragma GCC unroll 16
        for (int b = 0; b < kBatch; ++b) {
          const int8_t* x_step = codes + b * x.padded + 8 * t;
          pending[b] = add_nibbles(pending[b], w + 4 * kPanel * t, load_four(x_step),
                                   load_four(x_step + 4));
        }
      }
#pragma GCC unroll 16
      for (int b = 0; b < kBatch; ++b) sums[b] = flush(sums[b], pending[b]);
    }
#pragma GCC unroll 16
    for (int b = 0; b < kBatch; ++b) {
      results[b] = fma(to_floats(sums[b]), scale, results[b]);
    }
  }
};

}  // namespace

void dense_int8(const Call& call, int64_t begin, int64_t end) {
  sweep<DenseInt8>(call, begin, end);
}

void dense_int4(const Call& call, int64_t begin, int64_t end) {
  sweep<DenseInt4>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
