// Random numbers that are the same on every machine.
#ifndef SPARSE_JAX_FUZZ_RANDOM_H_
#define SPARSE_JAX_FUZZ_RANDOM_H_

#include <cstdint>
#include <vector>

namespace sparse_jax::fuzz {

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Uniform in [0, n), up to a bias that does not matter here; 0 for n = 0.
  uint64_t below(uint64_t n) { return n == 0 ? 0 : next() % n; }

  bool once_in(uint64_t n) { return below(n) == 0; }

  template <typename T>
  T& pick(std::vector<T>& values) {
    return values[below(values.size())];
  }
  template <typename T>
  const T& pick(const std::vector<T>& values) {
    return values[below(values.size())];
  }

 private:
  uint64_t state_;
};

}  // namespace sparse_jax::fuzz

#endif  // SPARSE_JAX_FUZZ_RANDOM_H_
