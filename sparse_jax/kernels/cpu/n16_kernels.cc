// Integers, exactly N of every 16 inputs; layouts in n16_layout.h.
//
//   n16_int8  blocks uint8 [panels, superblocks, N, 96], scales float32 [panels, 16]
//   n16_int4  blocks uint8 [panels, superblocks, N, 64], scales bfloat16
//             [panels, groups, 16]; a group is 128 inputs, two superblocks, or one
#include "n16_kernels.h"

#include "n16_superblock.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

template <class Values, int kSlots>
struct N16Ints {
  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    constexpr bool kGrouped = Values::kStep == kInt4Step;
    const Activations& x = *call.x;
    const int slots = static_cast<int>(call.leaf->arrays[0].shape[2]);
    const int64_t bytes = slots * Values::kStep;
    const int64_t odd = kGrouped ? scale_inputs_of(*call.leaf) / kSuperblock - 1 : 0;
    const uint8_t* blocks[kStreams];
    Ints sums[kStreams][kBatch];
    Floats results[kStreams][kBatch];
    for (int s = 0; s < kStreams; ++s) {
      blocks[s] = panel_blocks(*call.leaf, panels[s]);
      if (!kGrouped) prefetch_row_scales(row_scales(*call.leaf), panels[s]);
      for (int b = 0; b < kBatch; ++b) {
        sums[s][b] = int_zeros();
        results[s][b] = zeros();
      }
    }
    for (int r = 0; r < x.n_superblock_runs; ++r) {
      const Run run = x.superblock_runs[r];
      for (int64_t i = run.first; i < run.last; ++i) {
        const uint8_t* at[kStreams];
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) at[s] = blocks[s] + i * bytes;
        add_superblock<Values, kSlots>(
            at, slots, x.codes + row * x.padded + i * kSuperblock, x.padded, sums);
        if (kGrouped && ((i & odd) == odd || i + 1 == run.last)) {
          add_groups(*call.leaf, panels, i >> odd, sums, results);
        }
      }
    }
    for (int s = 0; s < kStreams; ++s) {
      for (int b = 0; b < kBatch; ++b) {
        const Floats y = kGrouped
                             ? to_output_order(results[s][b])
                             : mul(to_output_order(to_floats(sums[s][b])),
                                   load(row_scales(*call.leaf) + panels[s] * kPanel));
        store_outputs(call, row + b, panels[s], mul(y, set1(x.scales[row + b])));
      }
    }
  }

  static const float* row_scales(const Leaf& leaf) {
    return static_cast<const float*>(leaf.arrays[1].data);
  }

  // results += scale of the group * sums; sums = 0.
  template <int kStreams, int kBatch>
  static void add_groups(const Leaf& leaf, const int64_t (&panels)[kStreams],
                         int64_t group, Ints (&sums)[kStreams][kBatch],
                         Floats (&results)[kStreams][kBatch]) {
    const Array& scales = leaf.arrays[1];
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const uint16_t* at = static_cast<const uint16_t*>(scales.data) +
                           (panels[s] * scales.shape[1] + group) * kPanel;
      prefetch_group_scales(at);
      const Floats scale = to_output_order(load_bfloat16(at));
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) {
        results[s][b] = fma(to_floats(sums[s][b]), scale, results[s][b]);
        sums[s][b] = int_zeros();
      }
    }
  }
};

// The common N unrolled.
template <class Values>
void run_ints(const Call& call, int64_t begin, int64_t end) {
  switch (call.leaf->arrays[0].shape[2]) {
    case 4:
      return sweep<N16Ints<Values, 4>>(call, begin, end);
    case 5:
      return sweep<N16Ints<Values, 5>>(call, begin, end);
    case 8:
      return sweep<N16Ints<Values, 8>>(call, begin, end);
    default:
      return sweep<N16Ints<Values, 0>>(call, begin, end);
  }
}

}  // namespace

void n16_int8(const Call& call, int64_t begin, int64_t end) {
  run_ints<Int8Values>(call, begin, end);
}

void n16_int4(const Call& call, int64_t begin, int64_t end) {
  run_ints<Int4Values>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
