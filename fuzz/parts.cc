#include "parts.h"

#include <algorithm>
#include <string>

#include "crc32.h"

namespace sparse_jax::fuzz {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAlignment = 64;

void put_number(uint64_t number, int count, uint8_t* bytes) {
  for (int i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(number >> (8 * i));
}

uint64_t get_number(const uint8_t* bytes) {
  uint64_t number = 0;
  for (int i = 0; i < 8; ++i) number |= uint64_t{bytes[i]} << (8 * i);
  return number;
}

void append_number(uint64_t number, int count, Bytes* bytes) {
  bytes->resize(bytes->size() + count);
  put_number(number, count, bytes->data() + bytes->size() - count);
}

void append_text(const std::string& text, Bytes* bytes) {
  append_number(text.size(), 1, bytes);
  bytes->insert(bytes->end(), text.begin(), text.end());
}

void append_shape(const std::vector<uint64_t>& shape, Bytes* bytes) {
  append_number(shape.size(), 1, bytes);
  for (const uint64_t size : shape) append_number(size, 8, bytes);
}

// Makes the header say that the index starts at `offset` and ends the file. Its number
// of records stays.
void mend_header(uint64_t offset, Bytes* content) {
  uint8_t* header = content->data();
  put_number(content->size(), 8, header + 16);
  put_number(offset, 8, header + 24);
  put_number(content->size() - offset, 8, header + 32);
  put_number(crc32_of(header + offset, content->size() - offset), 4, header + 40);
  put_number(0, 4, header + 12);
  put_number(crc32_of(header, kPage), 4, header + 12);
}

}  // namespace

Parts take_apart(const Bytes& content) {
  std::vector<FileRecord> records;
  if (!parse_packed_file(content.data(), content.size(), false, &records).empty()) {
    return {};
  }
  Parts parts;
  for (FileRecord& record : records) {
    Part part;
    for (FileArray& array : record.arrays) {
      const auto first = content.begin() + array.offset;
      part.arrays.push_back({array, Bytes(first, first + array.bytes)});
    }
    record.arrays.clear();
    part.about = record;
    parts.push_back(part);
  }
  return parts;
}

Bytes put_together(const Parts& parts) {
  Bytes content(kPage), index;
  for (const Part& part : parts) {
    append_text(part.about.name, &index);
    append_text(part.about.format, &index);
    append_shape(part.about.shape, &index);
    append_number(part.arrays.size(), 1, &index);
    for (const PartArray& array : part.arrays) {
      append_text(array.about.name, &index);
      append_number(static_cast<uint64_t>(array.about.dtype), 1, &index);
      append_shape(array.about.shape, &index);
      append_number(content.size(), 8, &index);
      append_number(array.data.size(), 8, &index);
      append_number(crc32_of(array.data.data(), array.data.size()), 4, &index);
      content.insert(content.end(), array.data.begin(), array.data.end());
      content.resize((content.size() + kAlignment - 1) / kAlignment * kAlignment);
    }
  }
  const uint64_t offset = content.size();
  content.insert(content.end(), index.begin(), index.end());
  std::copy_n("SJPACKED", 8, content.begin());
  put_number(kVersion, 4, content.data() + 8);
  put_number(parts.size(), 4, content.data() + 44);
  mend_header(offset, &content);
  return content;
}

Bytes mend(Bytes content) {
  if (content.size() < kPage) content.resize(kPage);
  uint64_t offset = get_number(content.data() + 24);
  if (offset < kPage || offset > content.size()) offset = content.size();
  mend_header(offset, &content);
  const Parts parts = take_apart(content);
  return parts.empty() ? content : put_together(parts);
}

}  // namespace sparse_jax::fuzz
