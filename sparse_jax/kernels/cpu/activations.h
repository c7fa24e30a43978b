// One call's activations, in the forms that its kernel reads.
//
// int8 codes are symmetric, for every row of the batch alone:
//
//   scale = max|x| / 127        code = x * (127 / max|x|), rounded half to even
//
// in float32. A row with max|x| < 1e-30 counts as zero; the results of a row that is
// not finite are NaN.
#ifndef SPARSE_JAX_KERNELS_CPU_ACTIVATIONS_H_
#define SPARSE_JAX_KERNELS_CPU_ACTIVATIONS_H_

#include <memory>
#include <vector>

#include "kernel.h"

namespace sparse_jax {

class PreparedActivations {
 public:
  // `x` is [batch, n_in]; `cols` is [ceil(n_in / 16)], 0 = an inactive input panel, or
  // null when all are active. `sum_inputs` share a sum of codes: 32, 64 or 128.
  PreparedActivations(const float* x, int64_t batch, int64_t n_in, const uint8_t* cols,
                      unsigned needs, int64_t sum_inputs, const KernelTable& table);

  const Activations& get() const { return view_; }

 private:
  void find_runs(const uint8_t* cols);
  void quantize(int64_t sum_inputs, const KernelTable& table);
  template <typename T>
  T* allocate(int64_t count);

  Activations view_;
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<Run> panel_runs_, superblock_runs_;
};

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_ACTIVATIONS_H_
