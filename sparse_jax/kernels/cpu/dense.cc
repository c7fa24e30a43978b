// Arrays and checks of the dense formats; their layouts stand in dense_kernels.cc.
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
  const int64_t groups = ceil_div(leaf.n_in, 128);
  const std::string error =
      expect_shape(leaf, 0, {panels_of(leaf), groups * 16, kPanel, 4});
  return error.empty() ? expect_shape(leaf, 1, {panels_of(leaf), groups, kPanel})
                       : error;
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

const FormatInfo kDenseInt4Info = {
    "dense_int4",
    2,
    2,
    {{"codes", Dtype::kUint8, 4}, {"scales", Dtype::kBfloat16, 3}},
    1,
    check_int4,
    nullptr};

}  // namespace sparse_jax
