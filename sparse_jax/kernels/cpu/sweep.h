// How every kernel walks over the output panels of a call.
#ifndef SPARSE_JAX_KERNELS_CPU_SWEEP_H_
#define SPARSE_JAX_KERNELS_CPU_SWEEP_H_

#include "kernel.h"
#include "simd.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {
namespace {

// Panels that a thread reads side by side, from distant parts of its range: one memory
// stream leaves bandwidth unused. More than two gain nothing on recent cores, whose
// prefetchers lose track of four streams that are less than 8 MiB apart.
constexpr int kStreams1 = 2;

// How far ahead of a stream's reading.
constexpr int64_t kPrefetch = 4096;

// Prefetches what a stream reads next, far ahead: kernels that read a stream in bursts
// lose the hardware's prefetchers. Not into the second-level cache: weights are read
// once.
template <int64_t kAhead = kPrefetch>
inline void prefetch_ahead(const void* p, int64_t bytes) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(p) + kAhead + i, 0, 0);
  }
}

// What a panel needs at its end, asked for at its beginning: a few bytes far from all
// others, which would be waited for.
inline void prefetch_row_scales(const float* scales, int64_t panel) {
  __builtin_prefetch(scales + panel * kPanel);
}

// The same for scales of groups, which are read a few bytes at a time.
inline void prefetch_group_scales(const uint16_t* scales) {
  __builtin_prefetch(scales + 16 * kPanel);
}

// Writes the 16 outputs of `panel` for one row of the batch; the last panel may stick
// out of y.
inline void store_outputs(const Call& call, int64_t row, int64_t panel,
                          const Floats& sums) {
  const int64_t n_out = call.leaf->n_out, first = panel * kPanel;
  float* y = call.y + row * n_out + first;
  if (first + kPanel <= n_out) {
    store(y, sums);
    return;
  }
  float all[kPanel];
  store(all, sums);
  for (int64_t i = 0; i < n_out - first; ++i) y[i] = all[i];
}

// One panel for each of `kStreams` positions `distance` apart in the list of panels.
template <class Kernel, int kStreams, int kBatch>
inline void run_at(const Call& call, int64_t position, int64_t distance, int64_t row) {
  int64_t panels[kStreams];
  for (int s = 0; s < kStreams; ++s) panels[s] = call.panels[position + s * distance];
  Kernel::template run<kStreams, kBatch>(call, panels, row);
}

// All rows of the batch at kStreams panels: their weights stay in the cache for the
// rows after the first ones.
template <class Kernel, int kStreams>
inline void run_rows(const Call& call, int64_t position, int64_t distance) {
  const int64_t batch = call.x->batch;
  int64_t row = 0;
  if (kStreams == 1) {
    for (; row + 4 <= batch; row += 4) {
      run_at<Kernel, 1, 4>(call, position, distance, row);
    }
  }
  for (; row + 2 <= batch; row += 2) {
    run_at<Kernel, kStreams, 2>(call, position, distance, row);
  }
  if (row < batch) run_at<Kernel, kStreams, 1>(call, position, distance, row);
}

// A kernel is a struct with
//   template <int kStreams, int kBatch>
//   static void run(const Call&, const int64_t (&panels)[kStreams], int64_t row);
// which fills y[row .. row + kBatch) at the given panels. One whose panels are several
// streams each says so by kStreams = 1.
template <class Kernel, int kStreams = kStreams1>
inline void sweep(const Call& call, int64_t begin, int64_t end) {
  // Four rows or more are bound by arithmetic: one stream, more rows side by side.
  const int64_t streams = call.x->batch < 4 ? kStreams : 1;
  const int64_t distance = (end - begin) / streams;
  if (streams > 1) {
    for (int64_t i = begin; i < begin + distance; ++i) {
      run_rows<Kernel, kStreams>(call, i, distance);
    }
    begin += streams * distance;
  }
  for (; begin < end; ++begin) run_rows<Kernel, 1>(call, begin, 0);
}

}  // namespace
}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_SWEEP_H_
