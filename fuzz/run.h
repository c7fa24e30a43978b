// A file's matrices loaded, checked and multiplied, in memory with poisoned borders.
#ifndef SPARSE_JAX_FUZZ_RUN_H_
#define SPARSE_JAX_FUZZ_RUN_H_

#include <string>
#include <vector>

#include "dot.h"
#include "parts.h"
#include "random.h"

namespace sparse_jax::fuzz {

// What became of the matrices of the files so far.
struct Counts {
  uint64_t refused = 0;   // by check()
  uint64_t accepted = 0;  // by check()
  uint64_t products = 0;  // of those, multiplied: not larger than a test should be
};

// Aligned memory with borders that AddressSanitizer watches.
class Arena {
 public:
  explicit Arena(size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Forgets everything that was allocated.
  void clear();
  // `count` bytes at a multiple of 64 that end exactly where they should; null where
  // there is no room for them.
  uint8_t* allocate(size_t count);

 private:
  uint8_t* memory_;
  size_t bytes_, used_ = 0;
};

// Loads every matrix of a parsed file and multiplies by those that pass their check,
// with random kernels, batches and panels. Returns what `check` or `dot` said last.
std::string run_file(const Bytes& content, const std::vector<FileRecord>& records,
                     Arena* arena, Random* random, Counts* counts);

}  // namespace sparse_jax::fuzz

#endif  // SPARSE_JAX_FUZZ_RUN_H_
