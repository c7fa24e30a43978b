// Unstructured int8: a balanced base, and a tail for what does not fit into it.
//
// The base keeps B of every 16 inputs in the layout of n16_int8 (n16_layout.h). Where
// an output keeps more than B of a block, the others go to the tail of its panel: steps
// of 16 outputs x 4 slots, whose ids count from the start of a window of 128 inputs. A
// step starts at the first block that still has a weight to place, so outputs that are
// ahead work on inputs up to 128 further on, and few slots stay empty.
//
//   tail [step]   64 ids, then 64 codes, both [half][lane][slot] with the halves and
//                 lanes of the base; id 0 and code 0 where a slot is empty
#ifndef SPARSE_JAX_KERNELS_CPU_ELL_LAYOUT_H_
#define SPARSE_JAX_KERNELS_CPU_ELL_LAYOUT_H_

#include <stdint.h>

#include "kernel.h"
#include "leaf.h"

namespace sparse_jax {

constexpr int64_t kWindow = 128;    // inputs
constexpr int64_t kTailSlots = 64;  // of a step
constexpr int64_t kTailStep = 2 * kTailSlots;

enum EllArray {
  kEllBlocks,   // uint8 [panels, superblocks, B, 96], see n16_int8
  kEllScales,   // float32 [panels, 16]
  kEllOffsets,  // uint32 [panels + 1]: first step of a panel
  kEllStarts,   // uint16 [steps]: first block of 16 of the window
  kEllTail,     // uint8 [steps, 128]: ids and codes
};

// Blocks of 16 in which a window may start, so that it stays inside the padded inputs.
static inline int64_t ell_starts(int64_t n_in) {
  return (ceil_div(n_in, kInputPadding) * kInputPadding - kWindow) / 16 + 1;
}

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ELL_LAYOUT_H_
