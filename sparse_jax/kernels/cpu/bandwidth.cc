#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "pool.h"

namespace sparse_jax {

double read_bandwidth(int64_t bytes, int repeats, int threads,
                      const KernelTable& kernels) {
  const int64_t n = std::max<int64_t>(bytes / 4, 4096);
  const std::vector<float> memory(n, 0.0f);
  ThreadPool pool(threads);
  const int64_t chunks = threads == 1 ? 1 : 4 * threads;
  std::atomic<int64_t> zeros{0};  // keeps the reads alive
  double best = 0.0;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    parallel(pool, chunks, [&](int64_t chunk) {
      const int64_t first = n * chunk / chunks, last = n * (chunk + 1) / chunks;
      zeros += kernels.read_floats(memory.data() + first, last - first) == 0.0f;
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 4.0 * n / took.count());
  }
  return best;
}

}  // namespace sparse_jax
