// The parts of an N:16 superblock in plain loops; what they do stands in n16_avx2.h.
#ifndef SPARSE_JAX_KERNELS_CPU_N16_PORTABLE_H_
#define SPARSE_JAX_KERNELS_CPU_N16_PORTABLE_H_

#include "n16_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

struct Ids {
  uint8_t half[2][32];
};

struct Bytes {
  int8_t byte[kStepWeights];
};

inline Ids load_ids(const uint8_t* p) {
  Ids ids;
  for (int i = 0; i < 32; ++i) {
    ids.half[0][i] = p[i] & 15;
    ids.half[1][i] = p[i] >> 4;
  }
  return ids;
}

inline Bytes gather_quad(const Ids& ids, const int8_t* x_block) {
  Bytes x;
  for (int i = 0; i < kStepWeights; ++i) x.byte[i] = x_block[ids.half[i / 32][i % 32]];
  return x;
}

inline Bytes gather_rest(const Ids& ids, const int8_t* x_superblock) {
  Bytes x;
  for (int i = 0; i < kStepWeights; ++i) {
    const int block = i % 4, output = output_of(i / 32, i % 32 / 4);
    const int id = ids.half[block / 2][16 * (block % 2) + output];
    x.byte[i] = x_superblock[16 * block + id];
  }
  return x;
}

inline Bytes load_codes(const uint8_t* p) {
  Bytes codes;
  memcpy(codes.byte, p, sizeof codes.byte);
  return codes;
}

// 4-bit two's complement, 8 added: unsigned.
inline Bytes load_nibble_codes(const uint8_t* p) {
  Bytes codes;
  for (int i = 0; i < 32; ++i) {
    codes.byte[i] = static_cast<int8_t>((p[i] & 15) ^ 8);
    codes.byte[32 + i] = static_cast<int8_t>((p[i] >> 4) ^ 8);
  }
  return codes;
}

inline Ints add_products(const Ints& sum, const Bytes& codes, const Bytes& x) {
  Ints total = sum;
  for (int i = 0; i < kStepWeights; ++i) total.lane[i / 4] += codes.byte[i] * x.byte[i];
  return total;
}

using NibbleSums = Ints;

inline NibbleSums no_nibble_sums() { return int_zeros(); }

inline NibbleSums add_nibble_products(const NibbleSums& sums, const Bytes& codes,
                                      const Bytes& x) {
  NibbleSums total = sums;
  for (int i = 0; i < kStepWeights; ++i) {
    total.lane[i / 4] += (codes.byte[i] - 8) * x.byte[i];
  }
  return total;
}

inline Ints add_nibble_sums(const Ints& sum, const NibbleSums& part) {
  Ints total = sum;
  for (int i = 0; i < kPanel; ++i) total.lane[i] += part.lane[i];
  return total;
}

inline Floats to_output_order(const Floats& sums) {
  Floats swapped;
  for (int i = 0; i < 16; ++i) swapped.lane[output_of(i / 8, i % 8)] = sums.lane[i];
  return swapped;
}

struct FloatSums {
  float output[kPanel];
};

inline FloatSums no_float_sums() { return FloatSums{}; }

inline float value_at(const float* values, int half, int j, int lane) {
  return values[32 * half + 8 * j + lane];
}

inline float value_at(const uint16_t* values, int half, int j, int lane) {
  const uint32_t bits = values[32 * half + 16 * (j / 2) + 2 * lane + j % 2];
  return bits_to_float(bits << 16);
}

struct BlockTable {
  const float* x;
};

inline BlockTable load_block(const float* x, const uint8_t*, int block) {
  return {x + 16 * block};
}

template <typename Value>
inline void add_float_quad(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const BlockTable& table) {
  for (int half = 0; half < 2; ++half) {
    for (int lane = 0; lane < 8; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const int id = nibble(ids[16 * (lane / 4) + 4 * j + lane % 4], half);
        sums.output[8 * half + lane] += value_at(values, half, j, lane) * table.x[id];
      }
    }
  }
}

template <typename Value>
inline void add_float_rest(FloatSums& sums, const uint8_t* ids, const Value* values,
                           const float* x, const uint8_t*) {
  for (int half = 0; half < 2; ++half) {
    for (int lane = 0; lane < 8; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const int output = 4 * j + lane % 4, block = 2 * half + lane / 4;
        const int id = nibble(ids[16 * (lane / 4) + output], half);
        sums.output[output] += value_at(values, half, j, lane) * x[16 * block + id];
      }
    }
  }
}

inline Floats total(const FloatSums& sums, bool) { return load(sums.output); }

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_N16_PORTABLE_H_
