// One superblock of the N:16 formats for several panels and rows of the batch.
#ifndef SPARSE_JAX_KERNELS_CPU_N16_SUPERBLOCK_H_
#define SPARSE_JAX_KERNELS_CPU_N16_SUPERBLOCK_H_

#include "sweep.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "n16_avx512.h"
#elif defined(__AVX2__)
#include "n16_avx2.h"
#else
#include "n16_portable.h"
#endif

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

struct Int8Values {
  static constexpr int kStep = kInt8Step;
  using Sums = Ints;
  static Sums start(const Ints& sum) { return sum; }
  static Sums add(const Sums& sum, const Bytes& codes, const Bytes& x) {
    return add_products(sum, codes, x);
  }
  static Ints finish(const Ints&, const Sums& part) { return part; }
  static Bytes load(const uint8_t* values) { return load_codes(values); }
};

struct Int4Values {
  static constexpr int kStep = kInt4Step;
  using Sums = NibbleSums;
  static Sums start(const Ints&) { return no_nibble_sums(); }
  static Sums add(const Sums& sum, const Bytes& codes, const Bytes& x) {
    return add_nibble_products(sum, codes, x);
  }
  static Ints finish(const Ints& sum, const Sums& part) {
    return add_nibble_sums(sum, part);
  }
  static Bytes load(const uint8_t* values) { return load_nibble_codes(values); }
};

// sums[s][b] += superblock s times row b, in the lanes of n16_layout.h. `slots` is N;
// kSlots is N, too, where the compiler shall unroll it, or 0.
template <class Values, int kSlots, int kStreams, int kBatch>
inline void add_superblock(const uint8_t* const (&blocks)[kStreams], int slots,
                           const int8_t* x, int64_t x_stride,
                           Ints (&sums)[kStreams][kBatch]) {
  if (kSlots > 0) slots = kSlots;
  typename Values::Sums part[kStreams][kBatch];
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 4
    for (int b = 0; b < kBatch; ++b) part[s][b] = Values::start(sums[s][b]);
  }
  int64_t at = 0;
#pragma GCC unroll 4
  for (int block = 0; block < 4; ++block) {
#pragma GCC unroll 4
    for (int quad = 0; quad < slots / 4; ++quad, at += Values::kStep) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        const uint8_t* step = blocks[s] + at;
        prefetch_ahead(step, Values::kStep);
        const Ids ids = load_ids(step);
        const Bytes codes = Values::load(step + kIdBytes);
#pragma GCC unroll 4
        for (int b = 0; b < kBatch; ++b) {
          const Bytes kept = gather_quad(ids, x + b * x_stride + 16 * block);
          part[s][b] = Values::add(part[s][b], codes, kept);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int rest = 0; rest < slots % 4; ++rest, at += Values::kStep) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* step = blocks[s] + at;
      prefetch_ahead(step, Values::kStep);
      const Ids ids = load_ids(step);
      const Bytes codes = Values::load(step + kIdBytes);
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) {
        const Bytes kept = gather_rest(ids, x + b * x_stride);
        part[s][b] = Values::add(part[s][b], codes, kept);
      }
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 4
    for (int b = 0; b < kBatch; ++b) {
      sums[s][b] = Values::finish(sums[s][b], part[s][b]);
    }
  }
}

template <int kSlots, int kStreams, int kBatch>
inline void add_superblock_int8(const uint8_t* const (&blocks)[kStreams], int slots,
                                const int8_t* x, int64_t x_stride,
                                Ints (&sums)[kStreams][kBatch]) {
  add_superblock<Int8Values, kSlots, kStreams, kBatch>(blocks, slots, x, x_stride,
                                                       sums);
}

// The same for float values: `Value` is float or uint16_t (bfloat16). `x` and `planes`
// are those of the superblock, of one row.
template <typename Value, int kSlots, int kStreams>
inline void add_float_superblock(const uint8_t* const (&blocks)[kStreams], int slots,
                                 const float* x, const uint8_t* planes,
                                 FloatSums (&sums)[kStreams]) {
  constexpr int kStep = kIdBytes + kStepWeights * sizeof(Value);
  // Half as far for steps of more than four lines: what is asked for in one burst has
  // to find room.
  constexpr int64_t kAhead = sizeof(Value) == 4 ? kPrefetch / 2 : kPrefetch;
  if (kSlots > 0) slots = kSlots;
  int64_t at = 0;
#pragma GCC unroll 4
  for (int block = 0; block < 4; ++block) {
    const BlockTable table = load_block(x, planes, block);
#pragma GCC unroll 4
    for (int quad = 0; quad < slots / 4; ++quad, at += kStep) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        const uint8_t* step = blocks[s] + at;
        prefetch_ahead<kAhead>(step, kStep);
        add_float_quad(sums[s], step, reinterpret_cast<const Value*>(step + kIdBytes),
                       table);
      }
    }
  }
#pragma GCC unroll 4
  for (int rest = 0; rest < slots % 4; ++rest, at += kStep) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* step = blocks[s] + at;
      prefetch_ahead<kAhead>(step, kStep);
      add_float_rest(sums[s], step, reinterpret_cast<const Value*>(step + kIdBytes), x,
                     planes);
    }
  }
}

inline const uint8_t* panel_blocks(const Leaf& leaf, int64_t panel) {
  const Array& blocks = leaf.arrays[0];  // [panels, superblocks, N, step]
  return static_cast<const uint8_t*>(blocks.data) +
         panel * blocks.shape[1] * blocks.shape[2] * blocks.shape[3];
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_SUPERBLOCK_H_
