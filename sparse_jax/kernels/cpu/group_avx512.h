// The tiles of one quad: a register holds two groups of two outputs.
#ifndef SPARSE_JAX_KERNELS_CPU_GROUP_AVX512_H_
#define SPARSE_JAX_KERNELS_CPU_GROUP_AVX512_H_

#include "group_layout.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

inline __m512i four_lanes(__m128i a, __m128i b, __m128i c, __m128i d) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// The groups of slots r, r + 1, r + 4, r + 5, which are outputs r and r + 1.
inline __m512i four_groups(const uint8_t* x, const uint8_t* ids, int r) {
  const __m128i* groups = reinterpret_cast<const __m128i*>(x);
  return four_lanes(
      _mm_loadu_si128(groups + ids[r]), _mm_loadu_si128(groups + ids[r + 1]),
      _mm_loadu_si128(groups + ids[r + 4]), _mm_loadu_si128(groups + ids[r + 5]));
}

// bfloat16 scales: the exact sums of a group become floats. `pick` gives those of the
// same slots as `four_groups`, of the tile's 8.
struct FloatScales {
  static constexpr int kBytes = 2;  // of a scale
  using Sums = __m512;

  static Sums none() { return _mm512_setzero_ps(); }
  static __m512i load(const uint8_t* tile) {
    return _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile)));
  }
  static __m512 pick(__m512i scales, int r) {
    const auto place = [](int slot) {
      return _mm_set1_epi32(((2 * slot + 1) << 24) | ((2 * slot) << 16) | 0x8080);
    };
    return _mm512_castsi512_ps(_mm512_shuffle_epi8(
        scales, four_lanes(place(r), place(r + 1), place(r + 4), place(r + 5))));
  }
  // sums + scale * (x - offset) * w
  template <bool kOffset>
  static Sums add(Sums sums, __m512i x, __m512i w, __m512 scale) {
    __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), x, w);
    if (kOffset) {
      const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
      products = _mm512_sub_epi32(
          products, _mm512_dpbusd_epi32(_mm512_setzero_si512(), shift, w));
    }
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sums);
  }
  static __m512 to_floats(Sums sums) { return sums; }
};

// Integer scales: all of a quad's groups are added up in 32 bits, which hold 255 times
// 4 * 255 * 15 * 255.
struct IntScales {
  static constexpr int kBytes = 1;
  using Sums = __m512i;

  static Sums none() { return _mm512_setzero_si512(); }
  static __m512i load(const uint8_t* tile) {
    long long all;
    __builtin_memcpy(&all, tile, sizeof all);
    return _mm512_set1_epi64(all);
  }
  static __m512i pick(__m512i scales, int r) {
    const auto place = [](int slot) {
      return _mm_set1_epi16(static_cast<short>(0x8000 | slot));
    };
    return _mm512_shuffle_epi8(
        scales, four_lanes(place(r), place(r + 1), place(r + 4), place(r + 5)));
  }
  template <bool kOffset>
  static Sums add(Sums sums, __m512i x, __m512i w, __m512i scale) {
    __m512i products = _mm512_maddubs_epi16(x, w);
    if (kOffset) {
      const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
      products = _mm512_sub_epi16(products, _mm512_maddubs_epi16(shift, w));
    }
    return _mm512_dpwssd_epi32(sums, products, scale);
  }
  static __m512 to_floats(Sums sums) { return _mm512_cvtepi32_ps(sums); }
};

// Their zero points: byte r or r + 1 of the tile's 4, low nibbles in the lower half.
inline __m512i four_zeros(const uint8_t* zeros, int r) {
  int32_t packed;
  __builtin_memcpy(&packed, zeros, sizeof packed);
  const __m512i nibbles = _mm512_inserti64x4(
      _mm512_set1_epi32(packed), _mm256_set1_epi32(packed >> 4), 1);
  const __m128i first = _mm_set1_epi8(static_cast<char>(r));
  const __m128i second = _mm_set1_epi8(static_cast<char>(r + 1));
  return _mm512_and_si512(
      _mm512_shuffle_epi8(nibbles, four_lanes(first, second, first, second)),
      _mm512_set1_epi8(15));
}

// See group_portable.h.
template <class Scales, bool kZeros, bool kPart, int kBatch>
struct QuadSums {
  // Of outputs 0, 1, 0, 1 and of 2, 3, 2, 3: four partial sums.
  typename Scales::Sums sums[kBatch][2];

  QuadSums() {
    for (auto& row : sums) row[0] = row[1] = Scales::none();
  }

  void add(const Tiles& tiles, int64_t tile, const uint8_t* x, int64_t x_stride) {
    const uint8_t* ids = tiles.ids + tile * kTileGroups;
    const __m512i codes = load_bytes(tiles.codes + tile * kTileBytes);
    const __m512i scales =
        Scales::load(tiles.scales + tile * kTileGroups * Scales::kBytes);
    for (int half = 0; half < 2; ++half) {
      const int r = 2 * half;
      const __m512i zero = kZeros ? four_zeros(tiles.zeros + tile * kTileZeros, r)
                                  : _mm512_set1_epi8(kMiddle);
      const __m512i nibbles = half == 0 ? codes : _mm512_srli_epi16(codes, 4);
      const __m512i w = _mm512_sub_epi8(
          _mm512_and_si512(nibbles, _mm512_set1_epi8(15)), zero);
      const auto scale = Scales::pick(scales, r);
      for (int b = 0; b < kBatch; ++b) {
        const __m512i x_kept = four_groups(x + b * x_stride, ids, r);
        sums[b][half] =
            Scales::template add<kPart>(sums[b][half], x_kept, w, scale);
      }
    }
  }

  void finish(int b, float* out) const {
    __m256 pairs[2];
    for (int half = 0; half < 2; ++half) {
      const __m512 floats = Scales::to_floats(sums[b][half]);
      pairs[half] = _mm256_add_ps(_mm512_castps512_ps256(floats),
                                  _mm512_extractf32x8_ps(floats, 1));
    }
    __m256 all = _mm256_hadd_ps(pairs[0], pairs[1]);
    all = _mm256_hadd_ps(all, all);  // [0 2 0 2 | 1 3 1 3]
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(all),
                                       _mm256_extractf128_ps(all, 1)));
  }
};

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_GROUP_AVX512_H_
