// The tiles of one quad: a register holds one group of two outputs.
#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_AVX2_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_AVX2_H_

#include "group_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

inline __m256i pair_of(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

inline __m256i two_groups(const uint8_t* x, unsigned first, unsigned second) {
  const __m128i* groups = reinterpret_cast<const __m128i*>(x);
  return pair_of(_mm_loadu_si128(groups + first), _mm_loadu_si128(groups + second));
}

// The scales of slots `low` and `high` as floats, one in each half: of the tile's 8
// bfloat16, in both halves already.
inline __m256 two_scales(__m256i scales, int low, int high) {
  const auto pick = [](int slot) {
    return _mm_set1_epi32(((2 * slot + 1) << 24) | ((2 * slot) << 16) | 0x8080);
  };
  return _mm256_castsi256_ps(
      _mm256_shuffle_epi8(scales, pair_of(pick(low), pick(high))));
}

// The same 4 bytes in all lanes, byte `low` or `high` of them in each half.
inline __m256i two_bytes(__m256i bytes, int low, int high) {
  return _mm256_shuffle_epi8(bytes, pair_of(_mm_set1_epi8(static_cast<char>(low)),
                                            _mm_set1_epi8(static_cast<char>(high))));
}

// See group_portable.h. The sums of 16-bit products stay below 2 * 255 * 15.
template <bool kZeros, bool kPart, int kBatch>
struct QuadSums {
  // [output 0 | output 1] and [output 2 | output 3], four partial sums each, of the
  // first and the second group of a tile.
  __m256 sums[kBatch][2][2];

  QuadSums() {
    for (auto& row : sums) {
      for (auto& half : row) half[0] = half[1] = _mm256_setzero_ps();
    }
  }

  void add(const Tiles& tiles, int64_t tile, const uint8_t* x, int64_t x_stride) {
    const __m256i mask = _mm256_set1_epi8(15);
    const uint8_t* ids = tiles.ids + tile * kTileGroups;
    const __m256i scales = broadcast_16_bytes(tiles.scales + tile * kTileGroups);
    __m256i zeros[2];
    if (kZeros) {
      int32_t packed;
      __builtin_memcpy(&packed, tiles.zeros + tile * kTileZeros, sizeof packed);
      zeros[0] = _mm256_and_si256(_mm256_set1_epi32(packed), mask);
      zeros[1] = _mm256_and_si256(_mm256_set1_epi32(packed >> 4), mask);
    }
    for (int e = 0; e < 2; ++e) {
      const __m256i codes = load_bytes(tiles.codes + tile * kTileBytes + 32 * e);
      for (int half = 0; half < 2; ++half) {
        const int r = 2 * half;
        const __m256i zero =
            kZeros ? two_bytes(zeros[e], r, r + 1) : _mm256_set1_epi8(kMiddle);
        const __m256i nibbles = half == 0 ? codes : _mm256_srli_epi16(codes, 4);
        const __m256i w = _mm256_sub_epi8(_mm256_and_si256(nibbles, mask), zero);
        const __m256 scale = two_scales(scales, 4 * e + r, 4 * e + r + 1);
        for (int b = 0; b < kBatch; ++b) {
          const __m256i x_kept =
              two_groups(x + b * x_stride, ids[4 * e + r], ids[4 * e + r + 1]);
          sums[b][half][e] = _mm256_fmadd_ps(multiply(x_kept, w), scale,
                                             sums[b][half][e]);
        }
      }
    }
  }

  static __m256 multiply(__m256i x, __m256i w) {
    __m256i products = _mm256_maddubs_epi16(x, w);
    if (kPart) {
      const __m256i shift = _mm256_set1_epi8(static_cast<char>(128));
      products = _mm256_sub_epi16(products, _mm256_maddubs_epi16(shift, w));
    }
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }

  void finish(int b, float* out) const {
    __m256 all = _mm256_hadd_ps(_mm256_add_ps(sums[b][0][0], sums[b][0][1]),
                                _mm256_add_ps(sums[b][1][0], sums[b][1][1]));
    all = _mm256_hadd_ps(all, all);  // [0 2 0 2 | 1 3 1 3]
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(all),
                                       _mm256_extractf128_ps(all, 1)));
  }
};

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_AVX2_H_
