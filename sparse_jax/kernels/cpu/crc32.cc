#include "crc32.h"

#include <array>

namespace sparse_jax {
namespace {

// Tables for eight bytes at a time ("slicing by 8").
using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) * 0xEDB88320u);
    tables[0][i] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t before = tables[k - 1][i];
      tables[k][i] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr CrcTables kCrc = make_crc_tables();

// Little-endian, on every host.
uint64_t read_word(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  return word;
}

}  // namespace

uint32_t crc32_of(const uint8_t* bytes, size_t count) {
  uint32_t crc = 0xffffffffu;
  for (; count >= 8; bytes += 8, count -= 8) {
    const uint64_t word = read_word(bytes) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kCrc[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; count > 0; ++bytes, --count) crc = (crc >> 8) ^ kCrc[0][(crc ^ *bytes) & 0xff];
  return ~crc;
}

}  // namespace sparse_jax
