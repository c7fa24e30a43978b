// From a mask of 16 bits and packed values to 16 lanes, zero where the mask is.
#ifndef SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_
#define SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_

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

// Writes `first` + the positions of the bits that are set, ascending; returns how many.
// May write 64 bytes whatever the bits.
inline int list_bits(uint64_t bits, int first, uint8_t* positions) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
  alignas(64) static constexpr uint8_t kPositions[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,  //
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,  //
      32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,  //
      48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i all = _mm512_add_epi8(_mm512_load_si512(kPositions),
                                      _mm512_set1_epi8(static_cast<char>(first)));
  _mm512_storeu_si512(positions, _mm512_maskz_compress_epi8(bits, all));
  return __builtin_popcountll(bits);
#else
  int count = 0;
  for (; bits != 0; bits &= bits - 1) {
    positions[count++] = static_cast<uint8_t>(first + __builtin_ctzll(bits));
  }
  return count;
#endif
}

// 16 masks over outputs as 16 masks over inputs.
inline void transpose_masks(const uint16_t* masks, uint16_t (&by_output)[16]) {
#if defined(__AVX2__)
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masks));
  const __m128i a = _mm256_castsi256_si128(all), b = _mm256_extracti128_si256(all, 1);
  const __m128i byte = _mm_set1_epi16(255);
  __m128i low = _mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte));
  __m128i high = _mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8));
  for (int output = 7; output >= 0; --output) {
    by_output[output] = static_cast<uint16_t>(_mm_movemask_epi8(low));
    by_output[8 + output] = static_cast<uint16_t>(_mm_movemask_epi8(high));
    low = _mm_add_epi8(low, low);  // the next bit to the top of its byte
    high = _mm_add_epi8(high, high);
  }
#else
  for (int output = 0; output < 16; ++output) {
    by_output[output] = 0;
    for (int i = 0; i < 16; ++i) {
      by_output[output] |= static_cast<uint16_t>(((masks[i] >> output) & 1) << i);
    }
  }
#endif
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_BITMASK_EXPAND_H_
