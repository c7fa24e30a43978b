// The packed file, parsed from memory: where each array of each tensor lies.
//
// docs/packed_format.md describes the layout; io/packed_layout.py gives the same
// verdicts in the same sentences. A file is hostile input: nothing is believed
// unchecked.
#ifndef SPARSE_JAX_KERNELS_CPU_PACKED_FILE_H_
#define SPARSE_JAX_KERNELS_CPU_PACKED_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sparse_jax {

constexpr uint32_t kVersion = 2;  // of the files that are read

// The dtypes of arrays; the number is their code in the file.
enum class FileDtype : uint8_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat16,
  kBfloat16,
  kFloat32,
};

// One array: `bytes` bytes from `offset`, which is a multiple of 64.
struct FileArray {
  std::string name;
  FileDtype dtype;
  std::vector<uint64_t> shape;
  uint64_t offset;
  uint64_t bytes;
  uint32_t crc32;
};

// One tensor, or one file that is carried along.
struct FileRecord {
  std::string name;
  std::string format;
  std::vector<uint64_t> shape;
  std::vector<FileArray> arrays;
};

// Reads the index of a file and checks everything that it says, except for what the
// bytes of a storage type mean, which is the business of its own check.
//
// `verify` also reads the arrays and compares their checksums. Returns the error's
// sentence, or "" and the records.
std::string parse_packed_file(const uint8_t* content, size_t size, bool verify,
                              std::vector<FileRecord>* records);

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_PACKED_FILE_H_
