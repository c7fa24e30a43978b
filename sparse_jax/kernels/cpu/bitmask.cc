// Arrays and checks of the bitmask formats; their layout stands in bitmask_kernels.cc.
#include <algorithm>
#include <cstring>

#include "format.h"

namespace sparse_jax {
namespace {

constexpr int kMasks = 0, kOffsets = 1, kValues = 2;
// Kernels load whole registers of values: they may read this many past the last.
constexpr int64_t kValuePadding = 32;

std::string name_of(const Leaf& leaf) { return format_info(leaf.format).name; }

int64_t superblocks_of(const Leaf& leaf) { return ceil_div(leaf.n_in, 64); }

std::string check_shapes(const Leaf& leaf) {
  const int64_t n_panels = panels_of(leaf);
  std::string error =
      expect_shape(leaf, kMasks, {n_panels, ceil_div(leaf.n_in, 16), 16});
  if (error.empty()) {
    error = expect_shape(leaf, kOffsets, {n_panels * superblocks_of(leaf) + 1});
  }
  if (error.empty() && leaf.arrays[kValues].shape[0] < kValuePadding) {
    return name_of(leaf) + ", array values: expected at least " +
           std::to_string(kValuePadding) + " values of padding, found " +
           std::to_string(leaf.arrays[kValues].shape[0]);
  }
  return error;
}

// What one superblock of a panel keeps; the last one may be short.
int64_t count_kept(const Leaf& leaf, int64_t panel, int64_t superblock) {
  const int64_t blocks = leaf.arrays[kMasks].shape[1], first = 4 * superblock;
  const uint16_t* masks = static_cast<const uint16_t*>(leaf.arrays[kMasks].data);
  int64_t kept = 0;
  for (int64_t block = first; block < std::min(first + 4, blocks); ++block) {
    uint64_t words[4];
    std::memcpy(words, masks + (panel * blocks + block) * 16, sizeof words);
    for (uint64_t word : words) kept += __builtin_popcountll(word);
  }
  return kept;
}

// Every superblock's values start where those before it end, and all lie in the array.
std::string check_counts(const Leaf& leaf) {
  const uint32_t* offsets = static_cast<const uint32_t*>(leaf.arrays[kOffsets].data);
  const int64_t superblocks = superblocks_of(leaf);
  const int64_t n = panels_of(leaf) * superblocks;
  int64_t expected = 0;
  for (int64_t i = 0; i <= n; ++i) {
    if (offsets[i] != expected) {
      return name_of(leaf) + ", array offsets: expected superblock " +
             std::to_string(i) + " at value " + std::to_string(expected) + ", found " +
             std::to_string(offsets[i]);
    }
    if (i < n) expected += count_kept(leaf, i / superblocks, i % superblocks);
  }
  const int64_t stored = leaf.arrays[kValues].shape[0];
  if (stored != expected + kValuePadding) {
    return name_of(leaf) + ", array values: expected " + std::to_string(expected) +
           " values and " + std::to_string(kValuePadding) + " of padding, found " +
           std::to_string(stored);
  }
  return "";
}

}  // namespace

const FormatInfo kBitmaskFloat32Info = {"bitmask_float32",
                                        3,
                                        3,
                                        {{"masks", Dtype::kUint16, 3},
                                         {"offsets", Dtype::kUint32, 1},
                                         {"values", Dtype::kFloat32, 1}},
                                        1,
                                        check_shapes,
                                        check_counts};

const FormatInfo kBitmaskBfloat16Info = {"bitmask_bfloat16",
                                         3,
                                         3,
                                         {{"masks", Dtype::kUint16, 3},
                                          {"offsets", Dtype::kUint32, 1},
                                          {"values", Dtype::kBfloat16, 1}},
                                         1,
                                         check_shapes,
                                         check_counts};

}  // namespace sparse_jax
