// Arrays and checks of group_int4 and group_int4_u8; layout in group_layout.h.
#include "format.h"
#include "group_layout.h"

namespace sparse_jax {
namespace {

std::string check_sizes_of_group(const Leaf& leaf) {
  const int64_t panels = panels_of(leaf);
  const int64_t blocks = superblocks_of(leaf.n_in).count;
  const int64_t tiles = leaf.arrays[kGroupCodes].shape[0];
  std::string error = expect_shape(leaf, kGroupCodes, {-1, kTileBytes});
  const auto expect = [&](int array, std::initializer_list<int64_t> shape) {
    if (error.empty()) error = expect_shape(leaf, array, shape);
  };
  expect(kGroupIds, {tiles, kTileGroups});
  expect(kGroupScales, {tiles, kTileGroups});
  expect(kGroupCounts, {panels, blocks, kQuads});
  expect(kGroupOrder, {panels, blocks, kPanel});
  expect(kGroupStarts, {panels + 1});
  expect(kGroupExcess, {panels, kPanel});
  if (leaf.format == Format::kGroupInt4U8) expect(kGroupRest, {panels, kPanel});
  const int zeros = zeros_at(leaf);
  if (leaf.n_arrays > zeros) expect(zeros, {tiles, kTileZeros});
  return error;
}

std::string name_of(const Leaf& leaf, const char* array) {
  return std::string(format_info(leaf.format).name) + ", array " + array;
}

std::string at(const Leaf& leaf, const char* array, int64_t panel, int64_t block) {
  return name_of(leaf, array) + ", panel " + std::to_string(panel) + ", superblock " +
         std::to_string(block) + ": ";
}

std::string check_order(const Leaf& leaf, const uint8_t* order, int64_t panel,
                        int64_t block) {
  unsigned seen = 0;
  for (int i = 0; i < kPanel; ++i) seen |= order[i] < kPanel ? 1u << order[i] : 0u;
  if (seen == 0xffffu) return "";
  return at(leaf, "order", panel, block) + "expected a permutation of 0 to 15";
}

// Ids of one quad: inside the superblock, and ascending for each output.
std::string check_ids(const Leaf& leaf, const uint8_t* ids, int64_t tiles,
                      int64_t groups, int64_t panel, int64_t block) {
  for (int64_t i = 0; i < tiles * kTileGroups; ++i) {
    if (ids[i] >= groups) {
      return at(leaf, "ids", panel, block) + "expected ids below " +
             std::to_string(groups) + ", found " + std::to_string(ids[i]);
    }
    if (i >= kQuads && ids[i] < ids[i - kQuads]) {
      return at(leaf, "ids", panel, block) + "expected ascending ids, found " +
             std::to_string(ids[i]) + " after " + std::to_string(ids[i - kQuads]);
    }
  }
  return "";
}

// The counts of a panel add up to what starts says.
std::string check_counts(const Leaf& leaf, int64_t panel) {
  const uint32_t* starts = array_data<uint32_t>(leaf, kGroupStarts);
  const int64_t n = kQuads * superblocks_of(leaf.n_in).count;
  const uint8_t* counts = array_data<uint8_t>(leaf, kGroupCounts) + n * panel;
  int64_t tiles = 0;
  for (int64_t i = 0; i < n; ++i) tiles += counts[i];
  if (tiles == int64_t{starts[panel + 1]} - starts[panel]) return "";
  return name_of(leaf, "counts, panel ") + std::to_string(panel) + ": expected " +
         std::to_string(int64_t{starts[panel + 1]} - starts[panel]) +
         " tiles in all, found " + std::to_string(tiles);
}

std::string check_panel(const Leaf& leaf, int64_t panel) {
  std::string error = check_counts(leaf, panel);
  const Superblocks blocks = superblocks_of(leaf.n_in);
  const uint8_t* ids = tiles_of(leaf, panel).ids;
  for (int64_t b = 0; b < blocks.count && error.empty(); ++b) {
    const int64_t block = panel * blocks.count + b;
    const uint8_t* counts = array_data<uint8_t>(leaf, kGroupCounts) + kQuads * block;
    const int64_t rest = leaf.n_in / kGroup - b * blocks.width;
    const int64_t groups = rest < blocks.width ? rest : blocks.width;
    const uint8_t* order = array_data<uint8_t>(leaf, kGroupOrder) + kPanel * block;
    error = check_order(leaf, order, panel, b);
    for (int q = 0; q < kQuads && error.empty(); ++q) {
      error = check_ids(leaf, ids, counts[q], groups, panel, b);
      ids += kTileGroups * counts[q];
    }
  }
  return error;
}

std::string check_content_of_group(const Leaf& leaf) {
  const uint32_t* starts = array_data<uint32_t>(leaf, kGroupStarts);
  const int64_t panels = panels_of(leaf), tiles = leaf.arrays[kGroupCodes].shape[0];
  if (starts[0] != 0 || starts[panels] != tiles) {
    return name_of(leaf, "starts: expected 0 to ") + std::to_string(tiles) +
           ", found " + std::to_string(starts[0]) + " to " +
           std::to_string(starts[panels]);
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    if (starts[panel + 1] < starts[panel] || starts[panel + 1] > tiles) {
      return name_of(leaf, "starts: expected ascending numbers up to ") +
             std::to_string(tiles) + ", found " + std::to_string(starts[panel]) +
             ", then " + std::to_string(starts[panel + 1]);
    }
    const std::string error = check_panel(leaf, panel);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace

const FormatInfo kGroupInt4Info = {"group_int4",
                                   7,
                                   8,
                                   {{"codes", Dtype::kUint8, 2},
                                    {"ids", Dtype::kUint8, 2},
                                    {"scales", Dtype::kBfloat16, 2},
                                    {"counts", Dtype::kUint8, 3},
                                    {"order", Dtype::kUint8, 3},
                                    {"starts", Dtype::kUint32, 1},
                                    {"excess", Dtype::kFloat32, 2},
                                    {"zeros", Dtype::kUint8, 2}},
                                   16,
                                   check_sizes_of_group,
                                   check_content_of_group};

const FormatInfo kGroupInt4U8Info = {"group_int4_u8",
                                     8,
                                     9,
                                     {{"codes", Dtype::kUint8, 2},
                                      {"ids", Dtype::kUint8, 2},
                                      {"scales", Dtype::kUint8, 2},
                                      {"counts", Dtype::kUint8, 3},
                                      {"order", Dtype::kUint8, 3},
                                      {"starts", Dtype::kUint32, 1},
                                      {"excess", Dtype::kFloat32, 2},
                                      {"row_scales", Dtype::kFloat32, 2},
                                      {"zeros", Dtype::kUint8, 2}},
                                     16,
                                     check_sizes_of_group,
                                     check_content_of_group};

}  // namespace sparse_jax
