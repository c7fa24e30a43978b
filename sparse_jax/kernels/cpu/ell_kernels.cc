// Unstructured int8 that works per kept weight; see ell_layout.h.
#include "ell_kernels.h"

#include "ell_layout.h"
#include "n16_superblock.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "ell_avx512.h"
#elif defined(__AVX2__)
#include "ell_avx2.h"
#else
#include "ell_portable.h"
#endif

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// The tail of one panel.
struct Tail {
  const uint16_t* starts;
  const uint8_t* steps;
  int64_t count;
};

inline Tail tail_of(const Leaf& leaf, int64_t panel) {
  const auto* offsets = static_cast<const uint32_t*>(leaf.arrays[kEllOffsets].data);
  const int64_t first = offsets[panel];
  return {static_cast<const uint16_t*>(leaf.arrays[kEllStarts].data) + first,
          static_cast<const uint8_t*>(leaf.arrays[kEllTail].data) + first * kTailStep,
          offsets[panel + 1] - first};
}

// What the end of a panel needs, asked for at its beginning: a few bytes far from each
// other, each of which would be waited for.
inline void prefetch_tables(const Leaf& leaf, int64_t panel) {
  const Tail tail = tail_of(leaf, panel);
  for (int64_t step = 0; step < tail.count + 32; step += 32) {
    __builtin_prefetch(tail.starts + step);
  }
  __builtin_prefetch(static_cast<const float*>(leaf.arrays[kEllScales].data) +
                     panel * kPanel);
  __builtin_prefetch(static_cast<const uint32_t*>(leaf.arrays[kEllOffsets].data) +
                     panel + kPanel);
}

// Whether the window has an active input.
inline bool is_active(const Activations& x, int64_t start) {
  if (x.active == nullptr) return true;
  uint64_t flags;
  __builtin_memcpy(&flags, x.active + start, sizeof flags);
  return flags != 0;
}

// The tails of several panels, taken side by side as far as the shortest goes.
template <int kStreams, int kBatch>
struct Tails {
  using Sums = Ints[kStreams][kBatch];

  const Activations& x;
  const int8_t* codes;
  Tail tails[kStreams];
  int64_t common = INT64_MAX;
  int64_t done = 0;

  Tails(const Call& call, const int64_t (&panels)[kStreams], int64_t row)
      : x(*call.x), codes(x.codes + row * x.padded) {
    for (int s = 0; s < kStreams; ++s) {
      tails[s] = tail_of(*call.leaf, panels[s]);
      if (tails[s].count < common) common = tails[s].count;
    }
  }

  void add(const Tail& tail, int64_t step, Ints (&sums)[kBatch]) const {
    const int64_t start = tail.starts[step];
    if (!is_active(x, start)) return;
    const uint8_t* ids = tail.steps + step * kTailStep;
    prefetch_ahead(ids, kTailStep);
    const Bytes w = load_codes(ids + kTailSlots);
#pragma GCC unroll 4
    for (int b = 0; b < kBatch; ++b) {
      const int8_t* window = codes + b * x.padded + start * 16;
      sums[b] = add_products(sums[b], w, gather_tail(ids, window));
    }
  }

  // Steps up to the share done / all of the common ones.
  void add_share(int64_t share, int64_t all, Sums& sums) {
    for (; done < common * share / all; ++done) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) add(tails[s], done, sums[s]);
    }
  }

  void add_rest(Sums& sums) {
    add_share(1, 1, sums);
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      for (int64_t i = common; i < tails[s].count; ++i) add(tails[s], i, sums[s]);
    }
  }
};

// Superblocks of the base between two shares of the tail: both streams keep flowing.
constexpr int64_t kTurn = 8;

// kSlots = B unrolls the common cases; 0 reads it from the leaf.
template <int kSlots>
struct EllInt8 {
  template <int kStreams, int kBatch>
  static void run(const Call& call, const int64_t (&panels)[kStreams], int64_t row) {
    const Activations& x = *call.x;
    const Array& base = call.leaf->arrays[kEllBlocks];
    const int slots = static_cast<int>(base.shape[2]);
    Tails<kStreams, kBatch> tails(call, panels, row);
    const uint8_t* blocks[kStreams];
    Ints sums[kStreams][kBatch];
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      prefetch_tables(*call.leaf, panels[s]);
      blocks[s] = panel_blocks(*call.leaf, panels[s]);
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) sums[s][b] = int_zeros();
    }
    for (int r = 0; r < x.n_superblock_runs; ++r) {
      const Run run = x.superblock_runs[r];
      for (int64_t i = run.first; i < run.last; ++i) {
        const uint8_t* at[kStreams];
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) at[s] = blocks[s] + i * slots * kInt8Step;
        add_superblock_int8<kSlots>(at, slots,
                                    x.codes + row * x.padded + i * kSuperblock,
                                    x.padded, sums);
        if (i % kTurn == kTurn - 1) tails.add_share(i + 1, base.shape[1], sums);
      }
    }
    tails.add_rest(sums);
    store_sums(call, panels, row, sums);
  }

  template <int kStreams, int kBatch>
  static void store_sums(const Call& call, const int64_t (&panels)[kStreams],
                         int64_t row, const Ints (&sums)[kStreams][kBatch]) {
    const float* scales = static_cast<const float*>(call.leaf->arrays[kEllScales].data);
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const Floats scale = load(scales + panels[s] * kPanel);
#pragma GCC unroll 4
      for (int b = 0; b < kBatch; ++b) {
        const Floats y = to_output_order(to_floats(sums[s][b]));
        store_outputs(call, row + b, panels[s],
                      mul(mul(y, scale), set1(call.x->scales[row + b])));
      }
    }
  }
};

}  // namespace

void ell_int8(const Call& call, int64_t begin, int64_t end) {
  switch (call.leaf->arrays[kEllBlocks].shape[2]) {
    case 2: return sweep<EllInt8<2>, 1>(call, begin, end);
    case 3: return sweep<EllInt8<3>, 1>(call, begin, end);
    case 4: return sweep<EllInt8<4>, 1>(call, begin, end);
    case 5: return sweep<EllInt8<5>, 1>(call, begin, end);
    case 7: return sweep<EllInt8<7>, 1>(call, begin, end);
    case 8: return sweep<EllInt8<8>, 1>(call, begin, end);
    default: return sweep<EllInt8<0>, 1>(call, begin, end);
  }
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
