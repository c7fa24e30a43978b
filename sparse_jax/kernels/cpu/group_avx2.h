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

// The same 4 bytes in all lanes, byte `low` or `high` of them in each half.
inline __m256i two_bytes(__m256i bytes, int low, int high) {
  return _mm256_shuffle_epi8(bytes, pair_of(_mm_set1_epi8(static_cast<char>(low)),
                                            _mm_set1_epi8(static_cast<char>(high))));
}

// bfloat16 scales: the exact sums of a group become floats. `pick` gives those of slots
// `low` and `high`, one in each half, of the tile's 8.
struct FloatScales {
  static constexpr int kBytes = 2;  // of a scale
  using Sums = __m256;

  static Sums none() { return _mm256_setzero_ps(); }
  static __m256i load(const uint8_t* tile) { return broadcast_16_bytes(tile); }
  static __m256 pick(__m256i scales, int low, int high) {
    const auto place = [](int slot) {
      return _mm_set1_epi32(((2 * slot + 1) << 24) | ((2 * slot) << 16) | 0x8080);
    };
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(scales, pair_of(place(low), place(high))));
  }
  static Sums add(Sums sums, __m256i products, __m256 scale) {
    const __m256i fours = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(fours), scale, sums);
  }
  static __m256 to_floats(Sums sums) { return sums; }
};

// Integer scales: all of a quad's groups are added up in 32 bits, which hold 255 times
// 4 * 255 * 15 * 255.
struct IntScales {
  static constexpr int kBytes = 1;
  using Sums = __m256i;

  static Sums none() { return _mm256_setzero_si256(); }
  static __m256i load(const uint8_t* tile) {
    long long all;
    __builtin_memcpy(&all, tile, sizeof all);
    return _mm256_set1_epi64x(all);
  }
  static __m256i pick(__m256i scales, int low, int high) {
    const auto place = [](int slot) {
      return _mm_set1_epi16(static_cast<short>(0x8000 | slot));
    };
    return _mm256_shuffle_epi8(scales, pair_of(place(low), place(high)));
  }
  static Sums add(Sums sums, __m256i products, __m256i scale) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(products, scale));
  }
  static __m256 to_floats(Sums sums) { return _mm256_cvtepi32_ps(sums); }
};

// See group_portable.h. The sums of 16-bit products stay below 2 * 255 * 15.
template <class Scales, bool kZeros, bool kPart, int kBatch>
struct QuadSums {
  // [output 0 | output 1] and [output 2 | output 3], four partial sums each, of the
  // first and the second group of a tile.
  typename Scales::Sums sums[kBatch][2][2];

  QuadSums() {
    for (auto& row : sums) {
      for (auto& half : row) half[0] = half[1] = Scales::none();
    }
  }

  void add(const Tiles& tiles, int64_t tile, const uint8_t* x, int64_t x_stride) {
    const __m256i mask = _mm256_set1_epi8(15);
    const uint8_t* ids = tiles.ids + tile * kTileGroups;
    const __m256i scales =
        Scales::load(tiles.scales + tile * kTileGroups * Scales::kBytes);
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
        const auto scale = Scales::pick(scales, 4 * e + r, 4 * e + r + 1);
        for (int b = 0; b < kBatch; ++b) {
          const __m256i x_kept =
              two_groups(x + b * x_stride, ids[4 * e + r], ids[4 * e + r + 1]);
          sums[b][half][e] =
              Scales::add(sums[b][half][e], multiply(x_kept, w), scale);
        }
      }
    }
  }

  static __m256i multiply(__m256i x, __m256i w) {
    __m256i products = _mm256_maddubs_epi16(x, w);
    if (kPart) {
      const __m256i shift = _mm256_set1_epi8(static_cast<char>(128));
      products = _mm256_sub_epi16(products, _mm256_maddubs_epi16(shift, w));
    }
    return products;
  }

  void finish(int b, float* out) const {
    __m256 halves[2];
    for (int half = 0; half < 2; ++half) {
      halves[half] = _mm256_add_ps(Scales::to_floats(sums[b][half][0]),
                                   Scales::to_floats(sums[b][half][1]));
    }
    __m256 all = _mm256_hadd_ps(halves[0], halves[1]);
    all = _mm256_hadd_ps(all, all);  // [0 2 0 2 | 1 3 1 3]
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(all),
                                       _mm256_extractf128_ps(all, 1)));
  }
};

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_AVX2_H_
