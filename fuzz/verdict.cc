// What the C++ parser says of packed files: a filter, to be compared with Python's.
//
//   g++ -std=c++17 -I sparse_jax/kernels/cpu -o verdict
//       fuzz/verdict.cc sparse_jax/kernels/cpu/{packed_file,crc32}.cc
//
// Standard input is one file after the other, each behind its length as 8 bytes,
// little-endian. Prints one line for each: the sentence with which it is refused, or
// its records.
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "packed_file.h"

using sparse_jax::FileArray;
using sparse_jax::FileRecord;

namespace {

void print_shape(const std::vector<uint64_t>& shape) {
  std::cout << " [";
  for (const uint64_t size : shape) std::cout << size << ",";
  std::cout << "]";
}

void print_record(const FileRecord& record) {
  std::cout << " " << record.name << " " << record.format;
  print_shape(record.shape);
  for (const FileArray& array : record.arrays) {
    std::cout << " " << array.name << " " << static_cast<int>(array.dtype);
    print_shape(array.shape);
    std::cout << " " << array.offset << " " << array.bytes << " " << array.crc32;
  }
}

bool read_length(uint64_t* length) {
  unsigned char bytes[8];
  if (std::fread(bytes, 1, 8, stdin) != 8) return false;
  *length = 0;
  for (int i = 0; i < 8; ++i) *length |= uint64_t{bytes[i]} << (8 * i);
  return true;
}

}  // namespace

int main() {
  uint64_t length;
  while (read_length(&length)) {
    std::vector<uint8_t> content(length);
    if (std::fread(content.data(), 1, length, stdin) != length) return 1;
    std::vector<FileRecord> records;
    const std::string error =
        sparse_jax::parse_packed_file(content.data(), length, true, &records);
    std::cout << (error.empty() ? "ok" : error);
    if (error.empty()) {
      for (const FileRecord& record : records) print_record(record);
    }
    std::cout << "\n";
  }
  return 0;
}
