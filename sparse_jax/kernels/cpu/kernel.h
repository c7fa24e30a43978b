// What one instruction set provides: kernels that work on a range of output panels.
//
// The files that implement this are compiled once per instruction set. They must not
// use inline functions of the C++ library: the linker keeps one copy of each, and the
// one compiled for AVX-512 would then run everywhere.
#ifndef SPARSE_JAX_KERNELS_CPU_KERNEL_H_
#define SPARSE_JAX_KERNELS_CPU_KERNEL_H_

#include <cstdint>

#include "leaf.h"

namespace sparse_jax {

// Inputs of one superblock: rows of activations are padded with zeros to whole ones.
constexpr int64_t kSuperblock = 64;
// Inputs whose codes are added up while they are quantised.
constexpr int64_t kSumInputs = 32;
constexpr int64_t kInputPadding = 128;

// The forms of the activations that kernels read; a kernel names those it needs.
enum Need : unsigned {
  kNeedCodes = 1,   // int8 codes, scales, group_sums
  kNeedBiased = 2,  // codes + 128 as uint8; implies kNeedCodes
  kNeedPlanes = 4,  // bytes of the floats, split into planes
};

// Half-open range of input panels (16 inputs) or of superblocks.
struct Run {
  int64_t first, last;
};

// The activations of one call, prepared once. Inactive inputs and padding are zero in
// every form, so a kernel may skip them or not.
struct Activations {
  int64_t batch = 0;
  int64_t n_in = 0;
  int64_t padded = 0;                   // row length of all forms below
  const float* values = nullptr;        // [batch, padded]
  const int8_t* codes = nullptr;        // [batch, padded]: values / scale, half to even
  const uint8_t* biased = nullptr;      // [batch, padded]: codes + 128
  const float* scales = nullptr;        // [batch]
  int64_t groups = 0;                   // of the leaf's scales, in a padded row
  const int32_t* group_sums = nullptr;  // [batch, groups]: sums of codes
  const uint8_t* planes = nullptr;      // [batch, padded / 32, byte 0..3, 32]
  const Run* panel_runs = nullptr;      // active inputs, in input panels of 16
  int n_panel_runs = 0;
  const Run* superblock_runs = nullptr;  // the superblocks that hold them
  int n_superblock_runs = 0;
  const uint8_t* active = nullptr;  // [padded / 16]: 1 = active; null = all are
};

// y = x W^T for the panels of one leaf.
struct Call {
  const Leaf* leaf;
  const Activations* x;
  const int32_t* panels;  // active output panels, ascending
  float* y;               // [batch, n_out]
};

struct Kernel {
  unsigned needs;  // of `run`, as Need
  // Fills y at the panels [begin, end) of `call.panels`.
  void (*run)(const Call& call, int64_t begin, int64_t end);
};

// Symmetric quantisation of one row: see activations.h. `sums` are those of kSumInputs
// codes each. Returns the scale.
using QuantizeRow = float (*)(const float* values, int64_t n, int8_t* codes,
                              uint8_t* biased, int32_t* sums);
using ReadFloats = float (*)(const float* values, int64_t n);
using SplitPlanes = void (*)(const float* values, int64_t n, uint8_t* planes);

struct KernelTable {
  Kernel kernels[kFormats];  // run is null where a format is not built
  QuantizeRow quantize_row;
  SplitPlanes split_planes;
  ReadFloats read_floats;  // for measuring
};

namespace portable {
const KernelTable& table();
}
namespace avx2 {
const KernelTable& table();
}
namespace avx512 {
const KernelTable& table();
}

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_KERNEL_H_
