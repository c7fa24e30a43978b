// Where the ids and values of an N:16 superblock lie.
//
// A superblock holds 16 outputs x 64 inputs: 4 blocks of 16 inputs, of which every
// output keeps N. It is N steps of 64 weights: for every block its slots four at a time
// ("quads", N / 4 of them), then what is left of N / 4 ("rest") one slot at a time for
// the 4 blocks together. A step is 32 bytes of ids, then 64 values.
//
// In the int formats, whose products are added in fours, a lane is one of 8 outputs of
// one half of the panel, in the order that AVX2 unpacks (`output_of`):
//
//   ids of a quad    byte 4 lane + j: slot j; low nibble half 0, high nibble half 1
//   ids of the rest  byte 16 (block % 2) + output; low nibble blocks 0, 1, high 2, 3
//   values           [half][lane][j]: slot j of a quad, block j of the rest; int4: the
//                    nibbles of 32 bytes [lane][j], low half 0, high half 1
//
// In the float formats, where every product has a lane of its own, lane is an output:
//
//   ids of a quad    byte 16 (lane / 4) + 4 j + lane % 4 for output 8 half + lane;
//                    low nibble half 0, high nibble half 1
//   ids of the rest  as above
//   values           [half][j][lane]: output 8 half + lane, slot j of a quad; of the
//                    rest, lane < 4 is block 2 half and lane >= 4 block 2 half + 1,
//                    output 4 j + lane % 4. bfloat16: [half][j / 2][lane][j % 2]
#ifndef SPARSE_JAX_KERNELS_CPU_N16_LAYOUT_H_
#define SPARSE_JAX_KERNELS_CPU_N16_LAYOUT_H_

#include <stdint.h>

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

constexpr int kMaxSlots = 16;
constexpr int kIdBytes = 32;  // of one step
constexpr int kStepWeights = 64;
constexpr int kInt8Step = kIdBytes + kStepWeights;
constexpr int kInt4Step = kIdBytes + kStepWeights / 2;
constexpr int kBfloat16Step = kIdBytes + 2 * kStepWeights;
constexpr int kFloat32Step = kIdBytes + 4 * kStepWeights;

inline int output_of(int half, int lane) {
  return 4 * half + (lane < 4 ? lane : lane + 4);
}

inline int nibble(uint8_t byte, int half) { return (byte >> (4 * half)) & 15; }

struct Slot {
  int block, input;  // input inside its block
};

// Where the value at [half][lane][j] of a step belongs, in the int formats.
inline Slot int_slot(const uint8_t* superblock, int slots, int step_bytes, int step,
                     int half, int lane, int j) {
  const uint8_t* ids = superblock + step * step_bytes;
  const int quads = slots / 4;
  if (step < 4 * quads) return {step / quads, nibble(ids[4 * lane + j], half)};
  return {j, nibble(ids[16 * (j % 2) + output_of(half, lane)], j / 2)};
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_LAYOUT_H_
