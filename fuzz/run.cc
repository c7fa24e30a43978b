#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "format.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace sparse_jax::fuzz {
namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kLargestSide = 1024;  // of a matrix that is multiplied

Dtype to_dtype(FileDtype dtype) {
  switch (dtype) {
    case FileDtype::kUint8:
      return Dtype::kUint8;
    case FileDtype::kInt8:
      return Dtype::kInt8;
    case FileDtype::kUint16:
      return Dtype::kUint16;
    case FileDtype::kUint32:
      return Dtype::kUint32;
    case FileDtype::kBfloat16:
      return Dtype::kBfloat16;
    case FileDtype::kFloat32:
      return Dtype::kFloat32;
    default:
      return Dtype::kOther;
  }
}

// Fills `leaf` with copies of a record's arrays, in the order of its format. Returns
// what is wrong, which `check` has not seen yet.
std::string load(const Bytes& content, const FileRecord& record, Arena* arena,
                 Leaf* leaf) {
  if (!find_format(record.format.data(), record.format.size(), &leaf->format)) {
    return "unknown format";
  }
  leaf->n_out = static_cast<int64_t>(record.shape[0]);
  leaf->n_in = static_cast<int64_t>(record.shape[1]);
  const FormatInfo& info = format_info(leaf->format);
  for (int i = 0; i < info.n_arrays; ++i) {
    const auto named = std::find_if(
        record.arrays.begin(), record.arrays.end(),
        [&](const FileArray& array) { return array.name == info.arrays[i].name; });
    if (named == record.arrays.end()) break;
    Array& array = leaf->arrays[leaf->n_arrays++];
    array.dtype = to_dtype(named->dtype);
    array.n_dims = static_cast<int>(named->shape.size());
    std::copy(named->shape.begin(), named->shape.end(), array.shape);
    uint8_t* copy = arena->allocate(named->bytes);
    if (copy == nullptr) return "no room for the arrays";
    std::memcpy(copy, content.data() + named->offset, named->bytes);
    array.data = copy;
  }
  return static_cast<size_t>(leaf->n_arrays) == record.arrays.size()
             ? ""
             : "arrays of other names";
}

const uint8_t* random_panels(int64_t sides, Arena* arena, Random* random) {
  if (random->once_in(2)) return nullptr;
  const int64_t n = ceil_div(sides, kPanel);
  uint8_t* panels = arena->allocate(n);
  for (int64_t i = 0; panels != nullptr && i < n; ++i) panels[i] = random->once_in(2);
  return panels;
}

std::string multiply(const Leaf& leaf, Arena* arena, Random* random) {
  static const std::vector<std::string> kIsas = supported_isas();
  static const std::vector<int64_t> kBatches = {1, 1, 1, 2, 3, 8, 17, 70};
  std::string error;
  const KernelTable* kernels = find_kernels(random->pick(kIsas), &error);
  if (kernels == nullptr) return error;
  const int64_t batch = random->pick(kBatches);
  auto* x = reinterpret_cast<float*>(arena->allocate(4 * batch * leaf.n_in));
  auto* y = reinterpret_cast<float*>(arena->allocate(4 * batch * leaf.n_out));
  if (x == nullptr || y == nullptr) return "no room for the activations";
  const uint64_t bits = random->next();
  for (int64_t i = 0; i < batch * leaf.n_in; ++i) {
    x[i] = static_cast<float>(static_cast<int>((bits >> (i % 48)) & 0xffff) - 32768);
  }
  const Dot call = {&leaf,
                    x,
                    batch,
                    random_panels(leaf.n_out, arena, random),
                    random_panels(leaf.n_in, arena, random),
                    y};
  static ThreadPool pool(1);
  return dot(call, *kernels, pool);
}

}  // namespace

Arena::Arena(size_t bytes) : bytes_(bytes) {
  memory_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, bytes));
  if (memory_ == nullptr) throw std::bad_alloc();
  clear();
}

Arena::~Arena() {
  ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_);
  std::free(memory_);
}

void Arena::clear() {
  ASAN_POISON_MEMORY_REGION(memory_, used_ == 0 ? bytes_ : used_);
  used_ = kAlignment;
}

uint8_t* Arena::allocate(size_t count) {
  // At least one border of 64 bytes stays poisoned behind it.
  const size_t taken = (count + 2 * kAlignment - 1) / kAlignment * kAlignment;
  if (taken > bytes_ - used_) return nullptr;
  uint8_t* place = memory_ + used_;
  used_ += taken;
  ASAN_UNPOISON_MEMORY_REGION(place, count);
  return place;
}

std::string run_file(const Bytes& content, const std::vector<FileRecord>& records,
                     Arena* arena, Random* random, Counts* counts) {
  std::string said;
  for (const FileRecord& record : records) {
    if (record.format == "file" || record.format == "array") continue;
    arena->clear();
    Leaf leaf;
    std::string error = load(content, record, arena, &leaf);
    if (error.empty()) error = check(leaf);
    if (!error.empty()) {
      said = error;
      ++counts->refused;
      continue;
    }
    ++counts->accepted;
    if (std::max(leaf.n_out, leaf.n_in) > kLargestSide) continue;
    error = multiply(leaf, arena, random);
    if (error.empty()) {
      ++counts->products;
    } else {
      said = error;
    }
  }
  return said;
}

}  // namespace sparse_jax::fuzz
