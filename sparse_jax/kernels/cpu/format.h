// The names, arrays and checks of every format: what is the same on every CPU.
#ifndef SPARSE_JAX_KERNELS_CPU_FORMAT_H_
#define SPARSE_JAX_KERNELS_CPU_FORMAT_H_

#include <initializer_list>
#include <string>

#include "leaf.h"

namespace sparse_jax {

struct ArraySpec {
  const char* name;
  Dtype dtype;
  int n_dims;
};

// Sizes far above any model's, far below what overflows a product of two.
constexpr int64_t kMaxSize = int64_t{1} << 28;
// A row's products of int8 codes, at most 128 * 127 each, are added up in int32.
constexpr int64_t kMaxInt8Inputs = int64_t{1} << 17;

// The checks return an empty string when all is well; otherwise what ends the sentence
// "tensor NAME: ...".
struct FormatInfo {
  const char* name;
  int n_required;  // arrays of every leaf; optional ones may follow
  int n_arrays;
  ArraySpec arrays[kMaxArrays];
  int64_t input_multiple;  // n_in must be a multiple of it
  // Shapes against (n_out, n_in), in constant time: repeated at every call.
  std::string (*check_sizes)(const Leaf&);
  // Every count, index and offset in the arrays that a kernel trusts; null when there
  // is none. Reads the arrays: done once, when a leaf is loaded.
  std::string (*check_content)(const Leaf&);
  int64_t max_inputs = kMaxSize;
};

// One for each format, defined beside its family's checks; collected in format.cc.
extern const FormatInfo kDenseFloat32Info, kDenseBfloat16Info, kDenseInt8Info,
    kDenseInt4Info, kDenseInt2Info, kBitmaskFloat32Info, kBitmaskBfloat16Info,
    kEllInt8Info, kN16Float32Info, kN16Bfloat16Info, kN16Int8Info, kN16Int4Info,
    kGroupInt4Info, kGroupInt4U8Info;

const FormatInfo& format_info(Format format);
// False when no format has this name.
bool find_format(const char* name, size_t length, Format* format);

// Counts, dtypes, dimensions and sizes; constant time.
std::string check_sizes(const Leaf& leaf);
// check_sizes, then the content. A leaf that passes may be given to every kernel.
std::string check(const Leaf& leaf);

// Empty when the array has this shape; a negative size is free.
std::string expect_shape(const Leaf& leaf, int array,
                         std::initializer_list<int64_t> expected);

// Empty when array 1 is scales [panels, groups, 16], one for each 128 inputs or for
// each of a smaller number that `least` divides.
std::string expect_scales(const Leaf& leaf, int64_t least);

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_FORMAT_H_
