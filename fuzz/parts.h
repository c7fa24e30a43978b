// A packed file taken apart and put together again, with right sizes and checksums.
#ifndef SPARSE_JAX_FUZZ_PARTS_H_
#define SPARSE_JAX_FUZZ_PARTS_H_

#include <cstdint>
#include <vector>

#include "packed_file.h"

namespace sparse_jax::fuzz {

using Bytes = std::vector<uint8_t>;

struct PartArray {
  FileArray about;  // offset, bytes and checksum are made anew
  Bytes data;
};

struct Part {
  FileRecord about;  // its arrays are those below
  std::vector<PartArray> arrays;
};

using Parts = std::vector<Part>;

// The parts of a file whose index is right; its checksums may be wrong. Empty where the
// index is not right.
Parts take_apart(const Bytes& content);

Bytes put_together(const Parts& parts);

// The same bytes with right sizes and checksums, as far as they can be found.
Bytes mend(Bytes content);

}  // namespace sparse_jax::fuzz

#endif  // SPARSE_JAX_FUZZ_PARTS_H_
