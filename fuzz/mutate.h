// Damages for packed files: of their bytes, and of what the bytes mean.
#ifndef SPARSE_JAX_FUZZ_MUTATE_H_
#define SPARSE_JAX_FUZZ_MUTATE_H_

#include "parts.h"
#include "random.h"

namespace sparse_jax::fuzz {

// The seeds: whole files, also taken apart.
struct Corpus {
  std::vector<Bytes> files;
  std::vector<Parts> parts;
};

// A file of the corpus cut short, with flipped bits, with bytes of another one in it,
// longer or shorter, or with odd numbers in it.
Bytes damage_bytes(const Corpus& corpus, Random* random);

// A file of the corpus with other shapes, dtypes, formats or contents of its arrays,
// but right sizes and checksums.
Bytes damage_meaning(const Corpus& corpus, Random* random);

}  // namespace sparse_jax::fuzz

#endif  // SPARSE_JAX_FUZZ_MUTATE_H_
