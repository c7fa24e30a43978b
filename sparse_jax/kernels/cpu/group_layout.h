// Where the tiles of group_int4 and group_int4_u8 lie; ../group/layout.py says it all.
//
// A panel of 16 outputs meets a superblock of up to 256 groups of 16 inputs in a block.
// The outputs of a block are sorted by their kept groups; four neighbours in that order
// are a quad. A tile is two groups of each output of a quad:
//
//   slot 4 e + r                      group e of output r
//   codes [32 e + 16 (r % 2) + j]     input j; low nibble r = 0 or 1, high r = 2 or 3
//   zeros [r]                         low nibble e = 0, high e = 1
//
// w = scale (code - zero), in group_int4_u8 times the scale of its row. Padding has
// scale 0.
#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_LAYOUT_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_LAYOUT_H_

#include <stdint.h>

#include "leaf.h"

namespace sparse_jax {

constexpr int64_t kGroup = 16;
constexpr int64_t kMaxSuperblockGroups = 256;
constexpr int64_t kTileGroups = 8;
constexpr int64_t kTileBytes = 64;
constexpr int64_t kTileZeros = 4;
constexpr int kQuads = 4;  // of a block
constexpr int kMiddle = 8;  // the zero point where the leaf has no zeros

enum GroupArray {
  kGroupCodes,   // uint8 [tiles, 64]
  kGroupIds,     // uint8 [tiles, 8], ascending along the tiles of a quad
  kGroupScales,  // bfloat16 [tiles, 8]; in group_int4_u8, uint8
  kGroupCounts,  // uint8 [panels, superblocks, 4]: tiles of a quad
  kGroupOrder,   // uint8 [panels, superblocks, 16]: a permutation of 0..15
  kGroupStarts,  // uint32 [panels + 1]: first tile of a panel
  kGroupExcess,  // float32 [panels, 16]: 128 sum(w) of an output
  kGroupRest,    // of group_int4_u8: float32 [panels, 16], a scale of each row
};

// Where optional zeros are: uint8 [tiles, 4].
static inline int zeros_at(const Leaf& leaf) {
  return leaf.format == Format::kGroupInt4U8 ? kGroupRest + 1 : kGroupRest;
}

template <typename T>
static inline const T* array_data(const Leaf& leaf, int array) {
  return static_cast<const T*>(leaf.arrays[array].data);
}

// The superblocks of a row: equally wide, the last may be short.
struct Superblocks {
  int64_t count, width;  // width in groups
};

static inline Superblocks superblocks_of(int64_t n_in) {
  const int64_t groups = n_in / kGroup;
  const int64_t count = ceil_div(groups, kMaxSuperblockGroups);
  return {count, ceil_div(groups, count)};
}

// A run of tiles.
struct Tiles {
  const uint8_t* codes;
  const uint8_t* ids;
  const uint8_t* scales;  // their bytes
  const uint8_t* zeros;   // null: all kMiddle
  int64_t scale_bytes;    // of a tile
};

static inline void advance(Tiles* tiles, int64_t count) {
  tiles->codes += count * kTileBytes;
  tiles->ids += count * kTileGroups;
  tiles->scales += count * tiles->scale_bytes;
  if (tiles->zeros != nullptr) tiles->zeros += count * kTileZeros;
}

static inline Tiles tiles_of(const Leaf& leaf, int64_t panel) {
  const int zeros = zeros_at(leaf);
  const bool integers = leaf.format == Format::kGroupInt4U8;
  Tiles tiles = {array_data<uint8_t>(leaf, kGroupCodes),
                 array_data<uint8_t>(leaf, kGroupIds),
                 array_data<uint8_t>(leaf, kGroupScales),
                 leaf.n_arrays > zeros ? array_data<uint8_t>(leaf, zeros) : nullptr,
                 integers ? kTileGroups : 2 * kTileGroups};
  advance(&tiles, array_data<uint32_t>(leaf, kGroupStarts)[panel]);
  return tiles;
}

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_LAYOUT_H_
