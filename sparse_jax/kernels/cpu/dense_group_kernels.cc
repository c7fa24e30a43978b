// Dense codes of 4 and of 2 bits, by groups of inputs, times int8 activations.
//
//   dense_int4  codes uint8 [panels, n_in / 8, 16, 4]: a byte holds inputs 8 t + j (low
//               nibble) and 8 t + 4 + j; a group is 128, 64 or 32 inputs
//   dense_int2  codes uint8 [panels, n_in / 16, 16, 4]: a byte holds inputs
//               16 t + 4 k + j, from the lowest two bits up; a group is 64 inputs
//   scales      bfloat16 [panels, groups, 16]
//   zeros       uint32 [panels, groups, 16 bits / 32]: those of a group's 16 outputs,
//               from the lowest bits up; dense_int4 may be without, all are 8 then
//
// w = scale (code - zero).
#include "dense_ints.h"
#include "dense_kernels.h"
#include "sweep.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

struct FourBits {
  static constexpr int kBits = 4;
  static constexpr int kMostPending = kNibbleSteps;
  using Sums = Pending;

  static Sums none() { return no_pending(); }
  static Sums add(const Sums& sums, const uint8_t* w, const int8_t* x) {
    return add_nibbles(sums, w, load_four(x), load_four(x + 4));
  }
};

struct TwoBits {
  static constexpr int kBits = 2;
  static constexpr int kMostPending = kQuarterSteps;
  using Sums = Quarters;

  static Sums none() { return no_quarters(); }
  static Sums add(const Sums& sums, const uint8_t* w, const int8_t* x) {
    const int32_t fours[4] = {load_four(x), load_four(x + 4), load_four(x + 8),
                              load_four(x + 12)};
    return add_quarters(sums, w, fours);
  }
};

// kWidth: inputs of a group.
template <class Codes, int kWidth, bool kZeros>
struct DenseGroups {
  static constexpr int kStepBytes = 4 * kPanel;
  static constexpr int kStepInputs = 32 / Codes::kBits;
  static constexpr int kSteps = kWidth / kStepInputs;  // of a group
  static constexpr int kZeroWords = Codes::kBits / 2;
  static constexpr int kMiddle = 1 << (Codes::kBits - 1);

  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const Array* arrays = call.leaf->arrays;
    const int64_t groups = arrays[1].shape[1];
    const uint8_t* w[kStreams];
    const uint16_t* scales[kStreams];
    const uint32_t* zero_points[kStreams];
    Floats results[kStreams][kBatch];
    for (int s = 0; s < kStreams; ++s) {
      w[s] = static_cast<const uint8_t*>(arrays[0].data) +
             panels[s] * groups * kSteps * kStepBytes;
      scales[s] =
          static_cast<const uint16_t*>(arrays[1].data) + panels[s] * groups * kPanel;
      zero_points[s] = kZeros ? static_cast<const uint32_t*>(arrays[2].data) +
                                    panels[s] * groups * kZeroWords
                              : nullptr;
      for (int b = 0; b < kBatch; ++b) results[s][b] = zeros();
    }
    for (int r = 0; r < x.n_superblock_runs; ++r) {
      // Runs have gaps between them, so no two runs touch the same group; its inactive
      // inputs are zero.
      const Run run = x.superblock_runs[r];
      const int64_t last = ceil_div(run.last * kSuperblock, kWidth);
      for (int64_t g = run.first * kSuperblock / kWidth; g < last; ++g) {
#pragma GCC unroll 16
        for (int s = 0; s < kStreams; ++s) {
          const Ints zero = kZeros ? unpack_bits<Codes::kBits>(zero_points[s] +
                                                               g * kZeroWords)
                                   : int_set1(kMiddle);
          add_group<kBatch>(w[s] + g * kSteps * kStepBytes, zero,
                            load_bfloat16(scales[s] + g * kPanel), x, row, g,
                            results[s]);
        }
      }
    }
    store_scaled(call, panels, row, results);
  }

  // results += scale * sum((code - zero) * x), where the sum is
  // sum(code * x) - zero * sum(x).
  template <int kBatch>
  static void add_group(const uint8_t* w, const Ints& zero, const Floats& scale,
                        const Activations& x, int64_t row, int64_t group,
                        Floats (&results)[kBatch]) {
    constexpr int kPending =
        kSteps < Codes::kMostPending ? kSteps : Codes::kMostPending;
    const int8_t* codes = x.codes + row * x.padded + group * kWidth;
    const int32_t* group_sums = x.group_sums + row * x.groups + group;
    Ints sums[kBatch];
    typename Codes::Sums pending[kBatch];
#pragma GCC unroll 16
    for (int b = 0; b < kBatch; ++b) {
      const int32_t sum = group_sums[b * x.groups];
      sums[b] = kZeros ? multiply_small(zero, -sum) : int_set1(-kMiddle * sum);
    }
#pragma GCC unroll 16
    for (int first = 0; first < kSteps; first += kPending) {
#pragma GCC unroll 16
      for (int b = 0; b < kBatch; ++b) pending[b] = Codes::none();
#pragma GCC unroll 16
      for (int t = first; t < first + kPending; ++t) {
        prefetch_ahead(w + kStepBytes * t, kStepBytes);
#pragma GCC unroll 16
        for (int b = 0; b < kBatch; ++b) {
          pending[b] = Codes::add(pending[b], w + kStepBytes * t,
                                  codes + b * x.padded + kStepInputs * t);
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

template <int kWidth>
void run_int4(const Call& call, int64_t begin, int64_t end) {
  if (call.leaf->n_arrays > 2) {
    return sweep<DenseGroups<FourBits, kWidth, true>>(call, begin, end);
  }
  sweep<DenseGroups<FourBits, kWidth, false>>(call, begin, end);
}

}  // namespace

void dense_int4(const Call& call, int64_t begin, int64_t end) {
  switch (scale_inputs_of(*call.leaf)) {
    case 32:
      return run_int4<32>(call, begin, end);
    case 64:
      return run_int4<64>(call, begin, end);
    default:
      return run_int4<128>(call, begin, end);
  }
}

void dense_int2(const Call& call, int64_t begin, int64_t end) {
  sweep<DenseGroups<TwoBits, 64, true>>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
