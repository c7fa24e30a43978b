#include "format.h"

#include <cstring>

namespace sparse_jax {
namespace {

// In the order of the enum.
const FormatInfo* const kInfos[kFormats] = {
    &kDenseFloat32Info,    &kDenseBfloat16Info, &kDenseInt8Info,
    &kDenseInt4Info,       &kDenseInt2Info,     &kBitmaskFloat32Info,
    &kBitmaskBfloat16Info, &kEllInt8Info,       &kN16Float32Info,
    &kN16Bfloat16Info,     &kN16Int8Info,       &kN16Int4Info,
    &kGroupInt4Info,       &kGroupInt4U8Info,
};

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float32";
    case Dtype::kBfloat16:
      return "bfloat16";
    case Dtype::kInt8:
      return "int8";
    case Dtype::kUint8:
      return "uint8";
    case Dtype::kUint16:
      return "uint16";
    case Dtype::kUint32:
      return "uint32";
    case Dtype::kOther:
      return "another dtype";
  }
  return "another dtype";
}

std::string shape_text(const int64_t* sizes, int n) {
  std::string text = "[";
  for (int i = 0; i < n; ++i) {
    if (i > 0) text += ", ";
    text += sizes[i] < 0 ? "any" : std::to_string(sizes[i]);
  }
  return text + "]";
}

std::string prefix(const Leaf& leaf, int array) {
  const FormatInfo& info = format_info(leaf.format);
  return std::string(info.name) + ", array " + info.arrays[array].name + ": ";
}

std::string check_array(const Leaf& leaf, int i) {
  const ArraySpec& spec = format_info(leaf.format).arrays[i];
  const Array& array = leaf.arrays[i];
  if (array.dtype != spec.dtype) {
    return prefix(leaf, i) + "expected " + dtype_name(spec.dtype) + ", found " +
           dtype_name(array.dtype);
  }
  if (array.n_dims != spec.n_dims) {
    return prefix(leaf, i) + "expected " + std::to_string(spec.n_dims) +
           " dimensions, found " + std::to_string(array.n_dims);
  }
  for (int d = 0; d < array.n_dims; ++d) {
    if (array.shape[d] < 0) return prefix(leaf, i) + "a size is negative";
  }
  return "";
}

}  // namespace

const FormatInfo& format_info(Format format) {
  return *kInfos[static_cast<int>(format)];
}

bool find_format(const char* name, size_t length, Format* format) {
  for (int i = 0; i < kFormats; ++i) {
    if (std::strlen(kInfos[i]->name) == length &&
        std::memcmp(kInfos[i]->name, name, length) == 0) {
      *format = static_cast<Format>(i);
      return true;
    }
  }
  return false;
}

std::string expect_shape(const Leaf& leaf, int i,
                         std::initializer_list<int64_t> expected) {
  const Array& array = leaf.arrays[i];
  bool equal = array.n_dims == static_cast<int>(expected.size());
  int d = 0;
  for (int64_t size : expected) {
    if (equal && size >= 0) equal = array.shape[d] == size;
    ++d;
  }
  if (equal) return "";
  return prefix(leaf, i) + "expected shape " +
         shape_text(expected.begin(), static_cast<int>(expected.size())) + ", found " +
         shape_text(array.shape, array.n_dims);
}

std::string expect_scales(const Leaf& leaf, int64_t least) {
  const int64_t wide = ceil_div(leaf.n_in, 128), found = leaf.arrays[1].shape[1];
  for (int64_t inputs = 128; inputs >= least; inputs /= 2) {
    if (found == wide * 128 / inputs) {
      return expect_shape(leaf, 1, {panels_of(leaf), found, kPanel});
    }
  }
  return prefix(leaf, 1) + "expected " + std::to_string(wide) +
         " for each output, one for 128 inputs, or twice as many, down to " +
         std::to_string(least) + " inputs; found " + std::to_string(found);
}

std::string check_sizes(const Leaf& leaf) {
  const FormatInfo& info = format_info(leaf.format);
  const std::string name = info.name;
  if (leaf.n_out < 1 || leaf.n_in < 1 || leaf.n_out > kMaxSize ||
      leaf.n_in > kMaxSize) {
    return name + ": expected sizes between 1 and 2^28, found [" +
           std::to_string(leaf.n_out) + ", " + std::to_string(leaf.n_in) + "]";
  }
  if (leaf.n_in % info.input_multiple != 0) {
    return name + ": the inputs must be a multiple of " +
           std::to_string(info.input_multiple) + ", found " + std::to_string(leaf.n_in);
  }
  if (leaf.n_in > info.max_inputs) {
    return name + ": expected at most " + std::to_string(info.max_inputs) +
           " inputs, whose products int32 holds, found " + std::to_string(leaf.n_in);
  }
  if (leaf.n_arrays < info.n_required || leaf.n_arrays > info.n_arrays) {
    return name + ": expected " + std::to_string(info.n_required) +
           (info.n_arrays > info.n_required ? " to " + std::to_string(info.n_arrays)
                                            : std::string()) +
           " arrays, found " + std::to_string(leaf.n_arrays);
  }
  for (int i = 0; i < leaf.n_arrays; ++i) {
    const std::string error = check_array(leaf, i);
    if (!error.empty()) return error;
  }
  return info.check_sizes(leaf);
}

std::string check(const Leaf& leaf) {
  const std::string error = check_sizes(leaf);
  const FormatInfo& info = format_info(leaf.format);
  if (!error.empty() || info.check_content == nullptr) return error;
  return info.check_content(leaf);
}

}  // namespace sparse_jax
