// Arrays and checks of the N:16 formats; their layouts stand in n16_layout.h.
//
// Ids are 4 bits and every one of them is a valid input of its block of 16, so the
// content needs no check.
#include "format.h"

namespace sparse_jax {
namespace {

// A step is 32 bytes of ids for 64 weights, and their values.
std::string check_blocks(const Leaf& leaf, int64_t step_bytes) {
  const int64_t superblocks = ceil_div(leaf.n_in, 64);
  const std::string error =
      expect_shape(leaf, 0, {panels_of(leaf), superblocks, -1, step_bytes});
  if (!error.empty()) return error;
  const int64_t slots = leaf.arrays[0].shape[2];
  if (slots >= 1 && slots <= 16) return "";
  return std::string(format_info(leaf.format).name) +
         ", array blocks: expected 1 to 16 slots for 16 inputs, found " +
         std::to_string(slots);
}

std::string check_float32(const Leaf& leaf) { return check_blocks(leaf, 32 + 256); }
std::string check_bfloat16(const Leaf& leaf) { return check_blocks(leaf, 32 + 128); }

std::string check_int8(const Leaf& leaf) {
  const std::string error = check_blocks(leaf, 32 + 64);
  return error.empty() ? expect_shape(leaf, 1, {panels_of(leaf), kPanel}) : error;
}

std::string check_int4(const Leaf& leaf) {
  const std::string error = check_blocks(leaf, 32 + 32);
  return error.empty() ? expect_scales(leaf, 64) : error;
}

}  // namespace

const FormatInfo kN16Float32Info = {
    "n16_float32", 1, 1, {{"blocks", Dtype::kUint8, 4}}, 16, check_float32, nullptr};

const FormatInfo kN16Bfloat16Info = {
    "n16_bfloat16", 1, 1, {{"blocks", Dtype::kUint8, 4}}, 16, check_bfloat16, nullptr};

const FormatInfo kN16Int8Info = {
    "n16_int8", 2,
    2,          {{"blocks", Dtype::kUint8, 4}, {"scales", Dtype::kFloat32, 2}},
    16,         check_int8,
    nullptr,    kMaxInt8Inputs};

const FormatInfo kN16Int4Info = {
    "n16_int4", 2,
    2,          {{"blocks", Dtype::kUint8, 4}, {"scales", Dtype::kBfloat16, 3}},
    16,         check_int4,
    nullptr};

}  // namespace sparse_jax
