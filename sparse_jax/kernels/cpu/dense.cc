// Arrays and checks of the dense formats; their layouts stand in dense*_kernels.cc.
//
// Every code and every zero point of 2 or 4 bits is valid, so the content needs no
// check.
#include "format.h"

namespace sparse_jax {
namespace {

std::string check_float32(const Leaf& leaf) {
  return expect_shape(leaf, 0, {panels_of(leaf), leaf.n_in, kPanel});
}

std::string check_bfloat16(const Leaf& leaf) {
  return expect_shape(leaf, 0, {panels_of(leaf), ceil_div(leaf.n_in, 2), kPanel, 2});
}

std::string check_int8(const Leaf& leaf) {
  const std::string error =
      expect_shape(leaf, 0, {panels_of(leaf), ceil_div(leaf.n_in, 4), kPanel, 4});
  return error.empty() ? expect_shape(leaf, 1, {panels_of(leaf), kPanel}) : error;
}

std::string check_int4(const Leaf& leaf) {
  const int64_t steps = ceil_div(leaf.n_in, 128) * 16;
  std::string error = expect_shape(leaf, 0, {panels_of(leaf), steps, kPanel, 4});
  if (error.empty()) error = expect_scales(leaf, 32);
  if (!error.empty() || leaf.n_arrays == 2) return error;
  return expect_shape(leaf, 2, {panels_of(leaf), leaf.arrays[1].shape[1], 2});
}

std::string check_int2(const Leaf& leaf) {
  const int64_t groups = ceil_div(leaf.n_in, 64);
  std::string error = expect_shape(leaf, 0, {panels_of(leaf), groups * 4, kPanel, 4});
  if (error.empty()) error = expect_shape(leaf, 1, {panels_of(leaf), groups, kPanel});
  return error.empty() ? expect_shape(leaf, 2, {panels_of(leaf), groups, 1}) : error;
}

}  // namespace

const FormatInfo kDenseFloat32Info = {
    "dense_float32", 1, 1, {{"values", Dtype::kFloat32, 3}}, 1, check_float32, nullptr};

const FormatInfo kDenseBfloat16Info = {
    "dense_bfloat16", 1,      1, {{"values", Dtype::kBfloat16, 4}}, 1,
    check_bfloat16,   nullptr};

const FormatInfo kDenseInt8Info = {
    "dense_int8",
    2,
    2,
    {{"codes", Dtype::kInt8, 4}, {"scales", Dtype::kFloat32, 2}},
    1,
    check_int8,
    nullptr,
    kMaxInt8Inputs};

const FormatInfo kDenseInt4Info = {"dense_int4",
                                   2,
                                   3,
                                   {{"codes", Dtype::kUint8, 4},
                                    {"scales", Dtype::kBfloat16, 3},
                                    {"zeros", Dtype::kUint32, 3}},
                                   1,
                                   check_int4,
                                   nullptr};

const FormatInfo kDenseInt2Info = {"dense_int2",
                                   3,
                                   3,
                                   {{"codes", Dtype::kUint8, 4},
                                    {"scales", Dtype::kBfloat16, 3},
                                    {"zeros", Dtype::kUint32, 3}},
                                   1,
                                   check_int2,
                                   nullptr};

}  // namespace sparse_jax
