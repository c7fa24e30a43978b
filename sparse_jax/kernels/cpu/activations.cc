#include "activations.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace sparse_jax {
namespace {

constexpr int64_t kAlignment = 64;

// [first, last) of every run of true values.
template <typename Active>
void append_runs(int64_t n, const Active& active, std::vector<Run>* runs) {
  for (int64_t i = 0; i < n; ++i) {
    if (!active(i)) continue;
    if (!runs->empty() && runs->back().last == i) {
      ++runs->back().last;
    } else {
      runs->push_back({i, i + 1});
    }
  }
}

}  // namespace

template <typename T>
T* PreparedActivations::allocate(int64_t count) {
  memory_.emplace_back(new char[count * sizeof(T) + kAlignment]);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.back().get());
  return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

PreparedActivations::PreparedActivations(const float* x, int64_t batch, int64_t n_in,
                                         const uint8_t* cols, unsigned needs,
                                         int64_t sum_inputs,
                                         const KernelTable& table) {
  view_.batch = batch;
  view_.n_in = n_in;
  view_.padded = ceil_div(n_in, kInputPadding) * kInputPadding;
  find_runs(cols);
  const int64_t padded = view_.padded, size = batch * padded;
  view_.values = x;
  if (padded != n_in || cols != nullptr) {
    float* values = allocate<float>(size);
    std::memset(values, 0, size * sizeof(float));
    for (int64_t row = 0; row < batch; ++row) {
      for (const Run& run : panel_runs_) {
        const int64_t first = run.first * 16, last = std::min(run.last * 16, n_in);
        std::memcpy(values + row * padded + first, x + row * n_in + first,
                    (last - first) * sizeof(float));
      }
    }
    view_.values = values;
  }
  if (needs & (kNeedCodes | kNeedBiased)) {
    quantize(sum_inputs, table);
  }
  if (needs & kNeedPlanes) {
    uint8_t* planes = allocate<uint8_t>(4 * size);
    table.split_planes(view_.values, size, planes);
    view_.planes = planes;
  }
}

void PreparedActivations::quantize(int64_t sum_inputs, const KernelTable& table) {
  const int64_t batch = view_.batch, padded = view_.padded;
  const int64_t n_sums = padded / kSumInputs, fold = sum_inputs / kSumInputs;
  int8_t* codes = allocate<int8_t>(batch * padded);
  uint8_t* biased = allocate<uint8_t>(batch * padded);
  float* scales = allocate<float>(batch);
  int32_t* sums = allocate<int32_t>(n_sums);
  int32_t* group_sums = allocate<int32_t>(batch * n_sums / fold);
  for (int64_t row = 0; row < batch; ++row) {
    scales[row] = table.quantize_row(view_.values + row * padded, padded,
                                     codes + row * padded, biased + row * padded, sums);
    int32_t* folded = group_sums + row * n_sums / fold;
    std::memset(folded, 0, n_sums / fold * sizeof(int32_t));
    for (int64_t i = 0; i < n_sums; ++i) folded[i / fold] += sums[i];
  }
  view_.codes = codes;
  view_.biased = biased;
  view_.scales = scales;
  view_.groups = n_sums / fold;
  view_.group_sums = group_sums;
}

void PreparedActivations::find_runs(const uint8_t* cols) {
  const int64_t panels = ceil_div(view_.n_in, 16);
  if (cols == nullptr) {
    panel_runs_ = {{0, panels}};
    superblock_runs_ = {{0, ceil_div(panels, 4)}};
  } else {
    uint8_t* active = allocate<uint8_t>(view_.padded / 16);
    std::memset(active, 0, view_.padded / 16);
    for (int64_t i = 0; i < panels; ++i) active[i] = cols[i] != 0;
    append_runs(panels, [&](int64_t i) { return active[i] != 0; }, &panel_runs_);
    append_runs(
        ceil_div(panels, 4),
        [&](int64_t i) {
          const uint8_t* four = active + 4 * i;  // padded to 8: within the array
          return (four[0] | four[1] | four[2] | four[3]) != 0;
        },
        &superblock_runs_);
    view_.active = active;
  }
  view_.panel_runs = panel_runs_.data();
  view_.n_panel_runs = static_cast<int>(panel_runs_.size());
  view_.superblock_runs = superblock_runs_.data();
  view_.n_superblock_runs = static_cast<int>(superblock_runs_.size());
}

}  // namespace sparse_jax
