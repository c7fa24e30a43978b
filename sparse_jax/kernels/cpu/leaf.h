// A packed matrix as the kernels see it: a format, a logical shape and plain arrays.
//
// Nothing here owns memory. A leaf that came from outside the process must pass `check`
// before any kernel sees it: the kernels trust every size, offset and count.
#ifndef SPARSE_JAX_KERNELS_CPU_LEAF_H_
#define SPARSE_JAX_KERNELS_CPU_LEAF_H_

#include <cstdint>

namespace sparse_jax {

enum class Dtype { kOther, kFloat32, kBfloat16, kInt8, kUint8, kUint16, kUint32 };

// Outputs of one panel: the unit of work in every format.
constexpr int64_t kPanel = 16;
constexpr int kMaxArrays = 9;
constexpr int kMaxDims = 4;

struct Array {
  Dtype dtype = Dtype::kOther;
  int n_dims = 0;
  int64_t shape[kMaxDims] = {};
  const void* data = nullptr;
};

// The storage formats, in the order of `formats()`; their names are in FormatInfo.
enum class Format {
  kDenseFloat32,
  kDenseBfloat16,
  kDenseInt8,
  kDenseInt4,
  kDenseInt2,
  kBitmaskFloat32,
  kBitmaskBfloat16,
  kEllInt8,
  kN16Float32,
  kN16Bfloat16,
  kN16Int8,
  kN16Int4,
  kGroupInt4,
  kGroupInt4U8,
};
constexpr int kFormats = 14;

struct Leaf {
  Format format = Format::kDenseFloat32;
  int64_t n_out = 0;
  int64_t n_in = 0;
  int n_arrays = 0;
  Array arrays[kMaxArrays];
};

// Static: see kernel.h on functions that the linker merges.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t panels_of(const Leaf& leaf) {
  return ceil_div(leaf.n_out, kPanel);
}

// Inputs that share a scale in the int4 formats: 32, 64 or 128, by the number of
// scales [panels, groups, 16], which are for whole 128 inputs.
static inline int64_t scale_inputs_of(const Leaf& leaf) {
  return ceil_div(leaf.n_in, 128) * 128 / leaf.arrays[1].shape[1];
}

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_LEAF_H_
