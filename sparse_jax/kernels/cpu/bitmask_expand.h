// From a mask of 16 bits and packed values to 16 lanes, zero where the mask is.
#ifndef SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_
#define SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_

#include <string.h>

#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

inline int count_bits(unsigned mask) { return __builtin_popcount(mask); }

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)

inline Floats expand_values(unsigned mask, const float* values) {
  __m512 packed = _mm512_loadu_ps(values);
  // Keeps the load apart: an expanding load is microcode on some CPUs.
  asm("" : "+v"(packed));
  return {_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), packed)};
}

inline Floats expand_values(unsigned mask, const uint16_t* values) {
  return {
      _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), load_bfloat16(values).all)};
}

#elif defined(__AVX2__)

// For every mask of 8 bits: where in the packed values each lane's value stands.
struct LaneTable {
  alignas(32) int32_t lanes[256][8];  // float32: -1 is a lane of zero

  constexpr LaneTable() : lanes() {
    for (int mask = 0; mask < 256; ++mask) {
      int next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool kept = (mask >> lane) & 1;
        lanes[mask][lane] = kept ? next : -1;
        next += kept;
      }
    }
  }
};

struct ByteTable {
  alignas(32) uint8_t bytes[256][32];  // bfloat16, upper halves: 128 is a zero byte

  constexpr ByteTable() : bytes() {
    for (int mask = 0; mask < 256; ++mask) {
      int next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool kept = (mask >> lane) & 1;
        for (int byte = 2; byte < 4; ++byte) {
          bytes[mask][4 * lane + byte] =
              static_cast<uint8_t>(kept ? 2 * next + byte - 2 : 128);
        }
        bytes[mask][4 * lane] = bytes[mask][4 * lane + 1] = 128;
        next += kept;
      }
    }
  }
};

constexpr LaneTable kLaneTable;
constexpr ByteTable kByteTable;

// Rows of both tables are 32 bytes; `row` is the mask times that.
template <typename Table>
inline __m256i table_row(const Table& table, unsigned row) {
  return load_bytes(reinterpret_cast<const char*>(&table) + row);
}

inline __m256 expand_eight(unsigned row, const float* values) {
  const __m256i lanes = table_row(kLaneTable, row);
  const __m256 chosen = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), lanes);
  return _mm256_blendv_ps(chosen, _mm256_setzero_ps(), _mm256_castsi256_ps(lanes));
}

inline __m256 expand_eight(unsigned row, const uint16_t* values) {
  return _mm256_castsi256_ps(
      _mm256_shuffle_epi8(broadcast_16_bytes(values), table_row(kByteTable, row)));
}

template <typename Value>
inline Floats expand_values(unsigned mask, const Value* values) {
  // 32 times the low byte and the high one.
  const uint64_t low = (mask << 5) & 0x1fe0, high = (mask >> 3) & 0x1fe0;
  return {expand_eight(low, values), expand_eight(high, values + count_bits(low))};
}

#else

inline float to_float(float value) { return value; }
inline float to_float(uint16_t value) {
  return bits_to_float(static_cast<uint32_t>(value) << 16);
}

template <typename Value>
inline Floats expand_values(unsigned mask, const Value* values) {
  Floats w = zeros();
  for (int lane = 0; lane < 16; ++lane) {
    if ((mask >> lane) & 1) w.lane[lane] = to_float(*values++);
  }
  return w;
}

#endif

// For every byte, the positions of the bits that are set, ascending.
struct BitTable {
  uint8_t positions[256][8];

  constexpr BitTable() : positions() {
    for (int byte = 0; byte < 256; ++byte) {
      int next = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if ((byte >> bit) & 1) positions[byte][next++] = static_cast<uint8_t>(bit);
      }
    }
  }
};

constexpr BitTable kBitTable;

// Writes the positions of the bits that are set, ascending; returns how many. May write
// 64 bytes whatever the bits.
inline int list_bits(uint64_t bits, uint8_t* positions) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
  alignas(64) static constexpr uint8_t kPositions[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,  //
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,  //
      32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,  //
      48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i all = _mm512_load_si512(kPositions);
  _mm512_storeu_si512(positions, _mm512_maskz_compress_epi8(bits, all));
  return __builtin_popcountll(bits);
#else
  int count = 0;
  for (int byte = 0; byte < 8; ++byte, bits >>= 8) {
    uint64_t eight;
    memcpy(&eight, kBitTable.positions[bits & 255], sizeof eight);
    eight += byte * uint64_t{0x0808080808080808};
    memcpy(positions + count, &eight, sizeof eight);
    count += count_bits(bits & 255);
  }
  return count;
#endif
}

// 64 masks over outputs as 16 masks over inputs.
inline void transpose_masks(const uint16_t* masks, uint64_t (&by_output)[16]) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
  const __m512i low = load_bytes(masks), high = load_bytes(masks + 32);
#pragma GCC unroll 16
  for (int output = 0; output < 16; ++output) {
    const __m512i bit = _mm512_set1_epi16(static_cast<int16_t>(1 << output));
    const uint64_t upper = _mm512_test_epi16_mask(high, bit);
    by_output[output] = upper << 32 | _mm512_test_epi16_mask(low, bit);
  }
#elif defined(__AVX2__)
  uint32_t half[2][16];
  const __m256i byte = _mm256_set1_epi16(255);
  for (int i = 0; i < 2; ++i) {
    const __m256i a = load_bytes(masks + 32 * i), b = load_bytes(masks + 32 * i + 16);
    // Packing works in halves of registers: their order is put right.
    __m256i low = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte)),
        0xd8);
    __m256i high = _mm256_permute4x64_epi64(
        _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)), 0xd8);
    for (int output = 7; output >= 0; --output) {
      half[i][output] = static_cast<uint32_t>(_mm256_movemask_epi8(low));
      half[i][8 + output] = static_cast<uint32_t>(_mm256_movemask_epi8(high));
      low = _mm256_add_epi8(low, low);  // the next bit to the top of its byte
      high = _mm256_add_epi8(high, high);
    }
  }
  for (int output = 0; output < 16; ++output) {
    by_output[output] = uint64_t{half[1][output]} << 32 | half[0][output];
  }
#else
  for (int output = 0; output < 16; ++output) {
    by_output[output] = 0;
    for (int i = 0; i < 64; ++i) {
      by_output[output] |= uint64_t{(masks[i] >> output) & 1u} << i;
    }
  }
#endif
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_
