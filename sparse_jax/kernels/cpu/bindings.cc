// The engine inside JAX: one XLA FFI handler for every format, on XLA's own pool.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bandwidth.h"
#include "dot.h"
#include "format.h"
#include "xla/ffi/api/ffi.h"

namespace nb = nanobind;
namespace ffi = xla::ffi;

namespace sparse_jax {
namespace {

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool pool)
      : pool_(pool), threads_(static_cast<int>(pool.num_threads())) {}
  int threads() const override { return threads_ < 1 ? 1 : threads_; }
  void schedule(std::function<void()> task) override {
    pool_.Schedule(std::move(task));
  }

 private:
  ffi::ThreadPool pool_;
  int threads_;
};

Dtype to_dtype(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::DataType::F32:
      return Dtype::kFloat32;
    case ffi::DataType::BF16:
      return Dtype::kBfloat16;
    case ffi::DataType::S8:
      return Dtype::kInt8;
    case ffi::DataType::U8:
      return Dtype::kUint8;
    case ffi::DataType::U16:
      return Dtype::kUint16;
    case ffi::DataType::U32:
      return Dtype::kUint32;
    default:
      return Dtype::kOther;
  }
}

ffi::Error invalid(const std::string& message) {
  return ffi::Error::InvalidArgument(message);
}

ffi::Error to_array(const ffi::AnyBuffer& buffer, Array* array) {
  const auto sizes = buffer.dimensions();
  if (sizes.size() > kMaxDims) return invalid("packed leaf: too many dimensions");
  array->dtype = to_dtype(buffer.element_type());
  array->n_dims = static_cast<int>(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) array->shape[d] = sizes[d];
  array->data = buffer.untyped_data();
  return ffi::Error::Success();
}

// Operands: x, then `rows` and `cols` where the call has them, then the leaf's arrays.
ffi::Error dot_handler(ffi::ThreadPool xla_pool, std::string_view format,
                       std::string_view isa, bool has_rows, bool has_cols,
                       ffi::RemainingArgs operands, ffi::ResultBuffer<ffi::F32> y) {
  Leaf leaf;
  if (!find_format(format.data(), format.size(), &leaf.format)) {
    return invalid("unknown format " + std::string(format));
  }
  std::string error;
  const KernelTable* kernels = find_kernels(std::string(isa), &error);
  if (kernels == nullptr) return invalid(error);
  size_t next = 0;
  const auto x = operands.get<ffi::Buffer<ffi::F32>>(next++);
  if (x.has_error() || x->dimensions().size() != 2 || y->dimensions().size() != 2) {
    return invalid("dot: expected x and y to be float32 matrices");
  }
  Dot call = {&leaf,   x->typed_data(), x->dimensions()[0],
              nullptr, nullptr,         y->typed_data()};
  leaf.n_in = x->dimensions()[1];
  leaf.n_out = y->dimensions()[1];
  const auto flags = [&](bool present, int64_t n_panels, const uint8_t** panels) {
    if (!present) return true;
    const auto buffer = operands.get<ffi::Buffer<ffi::PRED>>(next++);
    if (buffer.has_error()) return false;
    *panels = reinterpret_cast<const uint8_t*>(buffer->typed_data());
    return static_cast<int64_t>(buffer->element_count()) == n_panels;
  };
  if (!flags(has_rows, ceil_div(leaf.n_out, kPanel), &call.rows) ||
      !flags(has_cols, ceil_div(leaf.n_in, kPanel), &call.cols)) {
    return invalid("dot: expected rows and cols to hold one bool for each panel of 16");
  }
  if (y->dimensions()[0] != call.batch || operands.size() - next > kMaxArrays) {
    return invalid("dot: x, y and the arrays of the leaf do not fit together");
  }
  for (; next < operands.size(); ++next) {
    const auto buffer = operands.get<ffi::AnyBuffer>(next);
    if (buffer.has_error()) return buffer.error();
    ffi::Error failed = to_array(*buffer, &leaf.arrays[leaf.n_arrays++]);
    if (failed.failure()) return failed;
  }
  XlaPool pool(xla_pool);
  error = dot(call, *kernels, pool);
  return error.empty() ? ffi::Error::Success() : invalid(error);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(kDotHandler, dot_handler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<std::string_view>("format")
                                  .Attr<std::string_view>("isa")
                                  .Attr<bool>("has_rows")
                                  .Attr<bool>("has_cols")
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>());

// The instruction set that this process uses, or ValueError.
std::string chosen_isa() {
  std::string error;
  const std::string name = default_isa(&error);
  if (!error.empty()) throw nb::value_error(error.c_str());
  return name;
}

Dtype parse_dtype(const std::string& name) {
  constexpr std::pair<const char*, Dtype> kNames[] = {
      {"float32", Dtype::kFloat32}, {"bfloat16", Dtype::kBfloat16},
      {"int8", Dtype::kInt8},       {"uint8", Dtype::kUint8},
      {"uint16", Dtype::kUint16},   {"uint32", Dtype::kUint32},
  };
  for (const auto& [text, dtype] : kNames) {
    if (name == text) return dtype;
  }
  return Dtype::kOther;
}

// (dtype, shape, address) of contiguous memory.
using ArrayAt = std::tuple<std::string, std::vector<int64_t>, uintptr_t>;

// What is wrong with a leaf, or an empty string. Reads every array.
std::string check_leaf(const std::string& format, std::pair<int64_t, int64_t> shape,
                       const std::vector<ArrayAt>& arrays) {
  Leaf leaf;
  if (!find_format(format.data(), format.size(), &leaf.format)) {
    return "unknown format " + format;
  }
  leaf.n_out = shape.first;
  leaf.n_in = shape.second;
  if (arrays.size() > kMaxArrays) return format + ": too many arrays";
  for (const auto& [dtype, sizes, address] : arrays) {
    if (sizes.size() > kMaxDims) return format + ": too many dimensions";
    Array& array = leaf.arrays[leaf.n_arrays++];
    array.dtype = parse_dtype(dtype);
    array.n_dims = static_cast<int>(sizes.size());
    for (size_t d = 0; d < sizes.size(); ++d) array.shape[d] = sizes[d];
    array.data = reinterpret_cast<const void*>(address);
  }
  return check(leaf);
}

double measure_bandwidth(int64_t bytes, int repeats, int threads) {
  std::string error;
  const KernelTable* kernels = find_kernels("", &error);
  if (kernels == nullptr) throw nb::value_error(error.c_str());
  nb::gil_scoped_release release;
  return read_bandwidth(bytes, repeats, threads, *kernels);
}

}  // namespace

NB_MODULE(_native, module) {
  module.def("dot_handler",
             [] { return nb::capsule(reinterpret_cast<void*>(kDotHandler)); });
  module.def("isa", chosen_isa);
  module.def("isas", supported_isas);
  module.def("check", check_leaf);
  module.def("read_bandwidth", measure_bandwidth);
}

}  // namespace sparse_jax
