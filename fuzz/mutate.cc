#include "mutate.h"

#include <algorithm>
#include <utility>

namespace sparse_jax::fuzz {
namespace {

constexpr uint64_t kHeader = 64;
constexpr uint64_t kLargestArray = 1 << 16;  // bytes, of one that is made larger

uint64_t odd_number(Random* random) {
  static const std::vector<uint64_t> kOdd = {
      0,    1,          2,          3,          15,     16,         17,
      63,   64,         65,         127,        128,    255,        256,
      4095, 4096,       32767,      65'535,     65'536, 0x7fffffff, 0x80000000,
      ~0u,  1ull << 32, 1ull << 40, 1ull << 63, ~0ull};
  return random->pick(kOdd) + random->below(3) - 1;
}

void flip_bits(uint8_t* bytes, uint64_t count, Random* random) {
  if (count == 0) return;
  for (uint64_t n = 1 + random->below(6); n > 0; --n) {
    bytes[random->below(count)] ^= static_cast<uint8_t>(1u << random->below(8));
  }
}

// Overwrites a number of 1, 2, 4 or 8 bytes, at a multiple of its size.
void put_odd_number(uint8_t* bytes, uint64_t count, Random* random) {
  const uint64_t width = uint64_t{1} << random->below(4);
  if (count < width) return;
  const uint64_t value = random->once_in(2) ? random->next() : odd_number(random);
  uint8_t* place = bytes + random->below(count / width) * width;
  for (uint64_t i = 0; i < width; ++i)
    place[i] = static_cast<uint8_t>(value >> (8 * i));
}

void splice(const Bytes& other, uint8_t* bytes, uint64_t count, Random* random) {
  const uint64_t from = random->below(other.size());
  const uint64_t to = random->below(count);
  const uint64_t most = std::min(other.size() - from, count - to);
  std::copy_n(other.begin() + from, std::min(most, 1 + random->below(200)), bytes + to);
}

void resize(Bytes* content, Random* random) {
  const auto place = content->begin() + random->below(content->size());
  const uint64_t count = 1 + random->below(100);
  if (random->once_in(2)) {
    const uint64_t rest = content->end() - place;
    content->erase(place, place + std::min(count, rest));
  } else {
    content->insert(place, count, static_cast<uint8_t>(random->next()));
  }
}

// The content of an array as something else.
void damage_data(const Corpus& corpus, Bytes* data, Random* random) {
  if (data->empty()) return;
  switch (random->below(4)) {
    case 0:
      return flip_bits(data->data(), data->size(), random);
    case 1:
    case 2:
      return put_odd_number(data->data(), data->size(), random);
    default:
      return splice(random->pick(corpus.files), data->data(), data->size(), random);
  }
}

uint64_t other_size(uint64_t size, Random* random) {
  static const std::vector<int> kSteps = {-64, -16, -4, -1, 1, 4, 16, 64};
  if (random->once_in(4)) return random->below(300);
  const int64_t step = random->pick(kSteps);
  return step < 0 && size < static_cast<uint64_t>(-step) ? 0 : size + step;
}

// Another shape, with as many bytes as it needs.
void damage_array_shape(PartArray* array, Random* random) {
  std::vector<uint64_t>& shape = array->about.shape;
  if (shape.empty() || array->data.empty()) return;
  uint64_t elements = 1;
  for (const uint64_t size : shape) elements *= size;
  const uint64_t item = array->data.size() / elements;
  uint64_t& size = random->pick(shape);
  const uint64_t before = std::exchange(size, other_size(size, random));
  const uint64_t bytes = elements / before * size * item;
  if (bytes > kLargestArray) {
    size = before;
  } else {
    array->data.resize(bytes, array->data[0]);
  }
}

void damage_dtype(PartArray* array, Random* random) {
  // Codes of the same size, so that the shape still fits.
  static const std::vector<std::vector<int>> kSame = {{0, 1}, {2, 3, 6, 7}, {4, 5, 8}};
  for (const std::vector<int>& codes : kSame) {
    if (std::count(codes.begin(), codes.end(), static_cast<int>(array->about.dtype))) {
      array->about.dtype = static_cast<FileDtype>(random->pick(codes));
      return;
    }
  }
}

void damage_part(const Corpus& corpus, Part* part, Random* random) {
  PartArray& array = random->pick(part->arrays);
  const Part& other = random->pick(random->pick(corpus.parts));
  switch (random->below(12)) {
    case 0:
      if (!part->about.shape.empty()) {
        uint64_t& size = random->pick(part->about.shape);
        size = other_size(size, random);
      }
      return;
    case 1:
      return damage_array_shape(&array, random);
    case 2:
      return damage_dtype(&array, random);
    case 3:
      part->about.format = other.about.format;
      return;
    case 4:
      array.about.shape = random->pick(other.arrays).about.shape;
      return;
    case 5: {
      const std::string name = array.about.name;
      array = random->pick(other.arrays);
      array.about.name = name;
      return;
    }
    case 6:
      std::swap(array, random->pick(part->arrays));
      return;
    default:
      return damage_data(corpus, &array.data, random);
  }
}

}  // namespace

Bytes damage_bytes(const Corpus& corpus, Random* random) {
  Bytes content = random->pick(corpus.files);
  // Most of a small file is empty header or data: header and index get their share.
  uint64_t first = 0, count = content.size();
  const uint64_t region = random->below(3);
  if (region == 0) count = kHeader;
  if (region == 1) {
    for (int i = 7; i >= 0; --i) first = first << 8 | content[24 + i];
    count = content.size() - first;
  }
  uint8_t* bytes = content.data() + first;
  switch (random->below(5)) {
    case 0:
      content.resize(random->below(content.size()));
      break;
    case 1:
      flip_bits(bytes, count, random);
      break;
    case 2:
      splice(random->pick(corpus.files), bytes, count, random);
      break;
    case 3:
      resize(&content, random);
      break;
    default:
      put_odd_number(bytes, count, random);
  }
  return content;
}

Bytes damage_meaning(const Corpus& corpus, Random* random) {
  Parts parts = random->pick(corpus.parts);
  for (uint64_t n = 1 + random->below(3); n > 0; --n) {
    damage_part(corpus, &random->pick(parts), random);
  }
  return put_together(parts);
}

}  // namespace sparse_jax::fuzz
