// Groups of 16 inputs kept or dropped whole, 4-bit codes; see group_layout.h.
//
// Each quad is one contiguous run of tiles, and the quads follow each other, so a
// thread reads three streams (codes, ids, scales) from start to end; prefetching the
// wide ones well ahead does what several streams do for other formats.
#include "group_kernels.h"

#include "group_layout.h"
#include "sweep.h"
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "group_avx512.h"
#elif defined(__AVX2__)
#include "group_avx2.h"
#else
#include "group_portable.h"
#endif

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

constexpr int64_t kPrefetchTiles = 128;  // 8 KiB of codes

// The tiles of a quad that hold an active group; returns how many.
inline int find_active(const Tiles& tiles, int count, const uint8_t* active,
                       uint8_t* list) {
  int n = 0;
  for (int tile = 0; tile < count; ++tile) {
    const uint8_t* ids = tiles.ids + tile * kTileGroups;
    uint8_t any = 0;
    for (int slot = 0; slot < kTileGroups; ++slot) any |= active[ids[slot]];
    list[n] = static_cast<uint8_t>(tile);
    n += any;
  }
  return n;
}

// Adds the products of one quad to out[row of the batch][output of the panel].
// kPart: only tiles with an active input.
template <class Scales, bool kZeros, bool kPart, int kBatch>
inline void add_quad(const Tiles& tiles, int count, const uint8_t* x, int64_t x_stride,
                     const uint8_t* active, const uint8_t* order,
                     float (&out)[kBatch][kPanel]) {
  QuadSums<Scales, kZeros, kPart, kBatch> quad;
  if (kPart) {
    uint8_t list[256];
    const int n = find_active(tiles, count, active, list);
    for (int i = 0; i < n; ++i) quad.add(tiles, list[i], x, x_stride);
  } else {
#pragma GCC unroll 2
    for (int tile = 0; tile < count; ++tile) {
      const int64_t ahead = tile + kPrefetchTiles;
      __builtin_prefetch(tiles.codes + ahead * kTileBytes);
      __builtin_prefetch(tiles.scales + ahead * kTileGroups * Scales::kBytes);
      quad.add(tiles, tile, x, x_stride);
    }
  }
  for (int b = 0; b < kBatch; ++b) {
    float sums[4];
    quad.finish(b, sums);
    for (int r = 0; r < 4; ++r) out[b][order[r]] += sums[r];
  }
}

template <class Scales, bool kZeros, bool kPart, int kBatch>
inline void run_panel(const Call& call, int64_t panel, int64_t row) {
  const Leaf& leaf = *call.leaf;
  const Activations& x = *call.x;
  const Superblocks blocks = superblocks_of(leaf.n_in);
  const uint8_t* counts =
      array_data<uint8_t>(leaf, kGroupCounts) + panel * blocks.count * kQuads;
  const uint8_t* order =
      array_data<uint8_t>(leaf, kGroupOrder) + panel * blocks.count * kPanel;
  Tiles tiles = tiles_of(leaf, panel);
  float sums[kBatch][kPanel] = {};
  for (int64_t block = 0; block < blocks.count; ++block) {
    const uint8_t* x_block =
        x.biased + row * x.padded + block * blocks.width * kGroup;
    const uint8_t* active = kPart ? x.active + block * blocks.width : nullptr;
    for (int quad = 0; quad < kQuads; ++quad) {
      add_quad<Scales, kZeros, kPart, kBatch>(tiles, *counts, x_block, x.padded,
                                              active, order, sums);
      advance(&tiles, *counts);
      ++counts;
      order += 4;
    }
  }
  const float* panel_excess = array_data<float>(leaf, kGroupExcess) + panel * kPanel;
  const Floats excess = kPart ? zeros() : load(panel_excess);
  for (int b = 0; b < kBatch; ++b) {
    Floats total = load(sums[b]);
    if (Scales::kBytes == 1) {
      total = mul(total, load(array_data<float>(leaf, kGroupRest) + panel * kPanel));
    }
    const Floats y = fma(excess, set1(-1.0f), total);
    store_outputs(call, row + b, panel, mul(y, set1(x.scales[row + b])));
  }
}

// The tables of a panel are a few bytes far from each other: waiting for each of them
// would take as long as a tenth of the tiles.
inline void prefetch_tables(const Leaf& leaf, int64_t panel) {
  const int64_t block = panel * superblocks_of(leaf.n_in).count;
  __builtin_prefetch(array_data<uint8_t>(leaf, kGroupCounts) + block * kQuads);
  __builtin_prefetch(array_data<uint8_t>(leaf, kGroupOrder) + block * kPanel);
  __builtin_prefetch(array_data<uint32_t>(leaf, kGroupStarts) + panel);
  __builtin_prefetch(array_data<float>(leaf, kGroupExcess) + panel * kPanel);
  if (leaf.format == Format::kGroupInt4U8) {
    __builtin_prefetch(array_data<float>(leaf, kGroupRest) + panel * kPanel);
  }
}

template <class Scales, bool kZeros, bool kPart>
inline void run_panels(const Call& call, int64_t begin, int64_t end) {
  const int64_t batch = call.x->batch;
  for (int64_t p = begin; p < end; ++p) {
    if (p + 2 < end) prefetch_tables(*call.leaf, call.panels[p + 2]);
    const int64_t panel = call.panels[p];
    int64_t row = 0;
    for (; row + 4 <= batch; row += 4) {
      run_panel<Scales, kZeros, kPart, 4>(call, panel, row);
    }
    for (; row + 2 <= batch; row += 2) {
      run_panel<Scales, kZeros, kPart, 2>(call, panel, row);
    }
    if (row < batch) run_panel<Scales, kZeros, kPart, 1>(call, panel, row);
  }
}

template <class Scales>
void run_groups(const Call& call, int64_t begin, int64_t end) {
  const bool zeros = call.leaf->n_arrays > zeros_at(*call.leaf);
  if (call.x->active == nullptr) {
    return zeros ? run_panels<Scales, true, false>(call, begin, end)
                 : run_panels<Scales, false, false>(call, begin, end);
  }
  return zeros ? run_panels<Scales, true, true>(call, begin, end)
               : run_panels<Scales, false, true>(call, begin, end);
}

}  // namespace

void group_int4(const Call& call, int64_t begin, int64_t end) {
  run_groups<FloatScales>(call, begin, end);
}

void group_int4_u8(const Call& call, int64_t begin, int64_t end) {
  run_groups<IntScales>(call, begin, end);
}

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
