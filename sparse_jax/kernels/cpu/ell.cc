// Arrays and checks of ell_int8; its layout stands in ell_layout.h.
//
// Every 4-bit id is an input of its block, so only the offsets, the windows and the ids
// inside them need a check.
#include "ell_layout.h"

#include "format.h"

namespace sparse_jax {
namespace {

constexpr int64_t kSlotBytes = 32 + 64;  // ids and codes of one slot of 64 weights

std::string check_sizes_of_ell(const Leaf& leaf) {
  const int64_t panels = panels_of(leaf);
  const int64_t slots = leaf.arrays[kEllBlocks].shape[2];
  const int64_t steps = leaf.arrays[kEllStarts].shape[0];
  std::string error = expect_shape(
      leaf, kEllBlocks, {panels, ceil_div(leaf.n_in, kSuperblock), -1, kSlotBytes});
  if (error.empty() && (slots < 1 || slots > 16)) {
    error = "ell_int8, array blocks: expected 1 to 16 slots, found " +
            std::to_string(slots);
  }
  if (error.empty()) error = expect_shape(leaf, kEllScales, {panels, kPanel});
  if (error.empty()) error = expect_shape(leaf, kEllOffsets, {panels + 1});
  if (error.empty()) error = expect_shape(leaf, kEllTail, {steps, kTailStep});
  return error;
}

std::string check_content_of_ell(const Leaf& leaf) {
  const auto* offsets = static_cast<const uint32_t*>(leaf.arrays[kEllOffsets].data);
  const auto* starts = static_cast<const uint16_t*>(leaf.arrays[kEllStarts].data);
  const int64_t panels = panels_of(leaf), steps = leaf.arrays[kEllStarts].shape[0];
  if (offsets[0] != 0 || offsets[panels] != steps) {
    return "ell_int8, array offsets: expected 0 to " + std::to_string(steps) +
           ", found " + std::to_string(offsets[0]) + " to " +
           std::to_string(offsets[panels]);
  }
  for (int64_t p = 0; p < panels; ++p) {
    if (offsets[p + 1] < offsets[p]) {
      return "ell_int8, array offsets: expected ascending numbers, found " +
             std::to_string(offsets[p]) + ", then " + std::to_string(offsets[p + 1]);
    }
  }
  const int64_t limit = ell_starts(leaf.n_in);
  for (int64_t step = 0; step < steps; ++step) {
    if (starts[step] < limit) continue;
    return "ell_int8, array starts: expected windows that start before block " +
           std::to_string(limit) + ", found " + std::to_string(starts[step]);
  }
  const auto* tail = static_cast<const uint8_t*>(leaf.arrays[kEllTail].data);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t slot = 0; slot < kTailSlots; ++slot) {
      const int id = tail[step * kTailStep + slot];
      if (id < kWindow) continue;
      return "ell_int8, array tail: expected ids below " + std::to_string(kWindow) +
             ", found " + std::to_string(id) + " in step " + std::to_string(step);
    }
  }
  return "";
}

}  // namespace

const FormatInfo kEllInt8Info = {"ell_int8",
                                 5,
                                 5,
                                 {{"blocks", Dtype::kUint8, 4},
                                  {"scales", Dtype::kFloat32, 2},
                                  {"offsets", Dtype::kUint32, 1},
                                  {"starts", Dtype::kUint16, 1},
                                  {"tail", Dtype::kUint8, 2}},
                                 1,
                                 check_sizes_of_ell,
                                 check_content_of_ell,
                                 kMaxInt8Inputs};

}  // namespace sparse_jax
