#include "packed_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "crc32.h"

namespace sparse_jax {
namespace {

constexpr char kMagic[] = "SJPACKED";
constexpr size_t kMagicBytes = 8;
constexpr uint64_t kPage = 4096;  // bytes before the first array
constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMaxRank = 4;
constexpr uint64_t kMaxDim = uint64_t{1} << 40;
constexpr uint64_t kMaxSide = 0x7fffffff;  // of a matrix
constexpr std::array<uint64_t, 9> kItemBytes = {1, 1, 2, 2, 4, 4, 2, 2, 4};

// Little-endian numbers, on every host.
uint64_t read_number(const uint8_t* bytes, int count) {
  uint64_t number = 0;
  for (int i = 0; i < count; ++i) number |= uint64_t{bytes[i]} << (8 * i);
  return number;
}

uint64_t align(uint64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

std::string damaged(const std::string& found) {
  return "truncated or damaged packed file (" + found +
         "); copy it again or export it anew";
}

std::string text(uint64_t number) { return std::to_string(number); }

// What the first page says.
struct Header {
  uint64_t index_offset;
  uint64_t n_records;
};

// Layout: magic [8], version u32, crc32 of the page u32 (taken over zeros in its own
// place), bytes of the file u64, offset and bytes of the index u64, its crc32 u32,
// number of records u32; then zeros.
std::string read_header(const uint8_t* content, size_t size, Header* header) {
  if (size < kMagicBytes || std::memcmp(content, kMagic, kMagicBytes) != 0) {
    return std::string("not a packed file (it does not start with the bytes ") +
           kMagic + "); launch/export.py makes one";
  }
  if (size < kPage) {
    return damaged("it ends after " + text(size) + " bytes, within the header");
  }
  const uint64_t version = read_number(content + 8, 4);
  if (version != kVersion) {
    return "packed file of version " + text(version) +
           ", but this program reads version " + text(kVersion) +
           "; use a program of that version, or export the model again";
  }
  std::array<uint8_t, kPage> page;
  std::copy_n(content, kPage, page.begin());
  std::fill_n(page.begin() + 12, 4, uint8_t{0});
  if (crc32_of(page.data(), kPage) != read_number(content + 12, 4)) {
    return damaged("the checksum of its header does not match");
  }
  const uint64_t stated = read_number(content + 16, 8);
  if (stated != size) {
    return damaged("it has " + text(size) + " bytes, its header says " + text(stated));
  }
  const uint64_t offset = read_number(content + 24, 8);
  const uint64_t length = read_number(content + 32, 8);
  if (offset < kPage || offset % kAlignment != 0 || offset > size ||
      length != size - offset) {
    return damaged("an index of " + text(length) + " bytes at byte " + text(offset));
  }
  if (crc32_of(content + offset, length) != read_number(content + 40, 4)) {
    return damaged("the checksum of its index does not match");
  }
  *header = {offset, read_number(content + 44, 4)};
  return "";
}

bool is_name_character(uint8_t c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
         c == '_' || c == '.' || c == '-';
}

// Reads the index from its start, never beyond its end. The first failure is kept in
// `error`, after which every number is 0 and every text empty.
class Cursor {
 public:
  Cursor(const uint8_t* bytes, size_t count) : next_(bytes), end_(bytes + count) {}

  std::string where;
  std::string error;

  bool at_end() const { return next_ == end_; }
  bool failed() const { return !error.empty(); }

  void fail(const std::string& found) {
    if (!failed()) error = damaged(found);
  }

  uint64_t number(int count) {
    const uint8_t* bytes = take(count);
    return bytes == nullptr ? 0 : read_number(bytes, count);
  }

  std::string name() {
    const uint64_t count = number(1);
    const uint8_t* bytes = take(count);
    if (bytes == nullptr) return "";
    if (count == 0 || !std::all_of(bytes, bytes + count, is_name_character)) {
      fail(where + " has a name that is not allowed");
      return "";
    }
    return std::string(bytes, bytes + count);
  }

  std::vector<uint64_t> shape() {
    const uint64_t rank = number(1);
    if (rank > kMaxRank) {
      fail(where + " has " + text(rank) + " dimensions");
      return {};
    }
    std::vector<uint64_t> shape(rank);
    for (uint64_t& size : shape) size = number(8);
    for (const uint64_t size : shape) {
      if (size > kMaxDim) fail(where + " has a dimension of " + text(size));
    }
    return shape;
  }

 private:
  // The next bytes, or null where there are not so many.
  const uint8_t* take(uint64_t count) {
    if (failed()) return nullptr;
    if (count > static_cast<uint64_t>(end_ - next_)) {
      fail("the index ends within " + where);
      return nullptr;
    }
    next_ += count;
    return next_ - count;
  }

  const uint8_t* next_;
  const uint8_t* end_;
};

// Bytes of an array of this shape, each dimension counted as at least `least`;
// kTooLarge where there are more than `limit`.
constexpr uint64_t kTooLarge = ~uint64_t{0};

uint64_t array_bytes(const FileArray& array, uint64_t least, uint64_t limit) {
  uint64_t bytes = kItemBytes[static_cast<size_t>(array.dtype)];
  for (const uint64_t size : array.shape) {
    const uint64_t factor = std::max(size, least);
    if (factor != 0 && bytes > limit / factor) return kTooLarge;
    bytes *= factor;
  }
  return bytes;
}

// The next array, which must start at `start` and end by `limit`.
FileArray read_array(Cursor* cursor, uint64_t start, uint64_t limit) {
  FileArray array;
  array.name = cursor->name();
  const uint64_t code = cursor->number(1);
  if (code >= kItemBytes.size()) {
    cursor->fail(cursor->where + " has an array of the unknown dtype " + text(code));
    return array;
  }
  array.dtype = static_cast<FileDtype>(code);
  array.shape = cursor->shape();
  array.offset = cursor->number(8);
  array.bytes = cursor->number(8);
  array.crc32 = static_cast<uint32_t>(cursor->number(4));
  if (cursor->failed()) return array;
  // An empty dimension must not hide that the others are absurd.
  if (array_bytes(array, 1, limit) == kTooLarge ||
      array_bytes(array, 0, limit) != array.bytes) {
    cursor->fail(cursor->where + " has an array of " + text(array.bytes) + " bytes");
  } else if (array.offset != start || array.bytes > limit - start) {
    cursor->fail(cursor->where + " has an array at byte " + text(array.offset));
  }
  return array;
}

bool is_side(uint64_t size) { return size > 0 && size <= kMaxSide; }

// Refuses records that are not what their format says.
void check_record(const FileRecord& record, Cursor* cursor) {
  if (record.format == "file" || record.format == "array") {
    const FileArray& array = record.arrays[0];
    bool right = record.arrays.size() == 1 && array.shape == record.shape;
    if (record.format == "file") {
      right = right && record.shape.size() == 1 && array.dtype == FileDtype::kUint8;
    }
    if (!right) {
      cursor->fail(record.name + " is not the " + record.format +
                   " that it says it is");
    }
  } else if (record.shape.size() != 2 ||
             !std::all_of(record.shape.begin(), record.shape.end(), is_side)) {
    cursor->fail(record.name + " is no matrix");
  }
}

// The next record, whose arrays lie in [*start, limit) without holes; moves *start to
// where the arrays of the following record begin.
FileRecord read_record(Cursor* cursor, uint64_t* start, uint64_t limit) {
  FileRecord record;
  record.name = cursor->name();
  if (!cursor->failed()) cursor->where = record.name;
  record.format = cursor->name();
  record.shape = cursor->shape();
  const uint64_t n_arrays = cursor->number(1);
  if (n_arrays == 0) cursor->fail(record.name + " has no arrays");
  for (uint64_t i = 0; i < n_arrays && !cursor->failed(); ++i) {
    FileArray array = read_array(cursor, *start, limit);
    if (cursor->failed()) break;
    for (const FileArray& other : record.arrays) {
      if (array.name == other.name) {
        cursor->fail(record.name + " has two arrays '" + array.name + "'");
      }
    }
    *start = align(array.offset + array.bytes);
    record.arrays.push_back(std::move(array));
  }
  if (!cursor->failed()) check_record(record, cursor);
  return record;
}

// Compares the checksums of a record's arrays; the zeros behind them must be zeros.
std::string verify_arrays(const uint8_t* content, const FileRecord& record) {
  for (const FileArray& array : record.arrays) {
    const std::string where = record.name + ", " + array.name + ",";
    if (crc32_of(content + array.offset, array.bytes) != array.crc32) {
      return damaged("the checksum of " + where + " does not match");
    }
    const uint64_t end = array.offset + array.bytes;
    if (std::any_of(content + end, content + align(end),
                    [](uint8_t byte) { return byte != 0; })) {
      return damaged(where + " does not end in zeros");
    }
  }
  return "";
}

}  // namespace

std::string parse_packed_file(const uint8_t* content, size_t size, bool verify,
                              std::vector<FileRecord>* records) {
  Header header;
  const std::string error = read_header(content, size, &header);
  if (!error.empty()) return error;
  const uint64_t limit = header.index_offset;
  Cursor cursor(content + limit, size - limit);
  uint64_t end = kPage;
  std::unordered_set<std::string> names;
  records->clear();
  for (uint64_t number = 0; number < header.n_records; ++number) {
    cursor.where = "record " + text(number);
    FileRecord record = read_record(&cursor, &end, limit);
    if (cursor.failed()) return cursor.error;
    if (!names.insert(record.name).second) {
      return damaged("the name '" + record.name + "' occurs twice");
    }
    records->push_back(std::move(record));
  }
  if (!cursor.at_end()) return damaged("the index goes on after its last record");
  if (end != limit) return damaged("the index does not follow the last array");
  for (const FileRecord& record : *records) {
    std::string wrong = verify ? verify_arrays(content, record) : "";
    if (!wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace sparse_jax
