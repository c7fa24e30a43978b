#include "dot.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "activations.h"
#include "format.h"

namespace sparse_jax {
namespace {

struct Isa {
  const char* name;
  bool supported;
  const KernelTable& (*table)();
};

// From the most to the least capable.
std::vector<Isa> all_isas() {
  std::vector<Isa> isas;
#if defined(SPARSE_JAX_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
      __builtin_cpu_supports("avx512vnni");
  isas.push_back({"avx512", avx512, avx512::table});
  isas.push_back({"avx2", avx2, avx2::table});
#endif
  isas.push_back({"portable", true, portable::table});
  return isas;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = all_isas();
  return all;
}

const Isa* find_isa(const std::string& name, std::string* error) {
  std::string names;
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    if (name == isa.name) return &isa;
    names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  *error = "instruction set " + name + ": this CPU has " + names +
           "; choose one of them, or none";
  return nullptr;
}

const Isa* best_isa(std::string* error) {
  const char* wanted = std::getenv("SPARSE_JAX_ISA");
  if (wanted != nullptr && *wanted != '\0') return find_isa(wanted, error);
  for (const Isa& isa : isas()) {
    if (isa.supported) return &isa;
  }
  return nullptr;
}

std::vector<int32_t> active_panels(int64_t panels, const uint8_t* rows) {
  std::vector<int32_t> active;
  active.reserve(panels);
  for (int64_t p = 0; p < panels; ++p) {
    if (rows == nullptr || rows[p] != 0) active.push_back(static_cast<int32_t>(p));
  }
  return active;
}

// Inputs whose codes a kernel wants added up: those of a scale.
int64_t sum_inputs_of(const Leaf& leaf) {
  if (leaf.format == Format::kDenseInt4) return scale_inputs_of(leaf);
  return leaf.format == Format::kDenseInt2 ? 64 : 128;
}

// Enough chunks that threads of unequal speed end together, yet each large enough for
// four streams.
int64_t count_chunks(int64_t panels, int threads) {
  if (threads == 1) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(4 * threads, panels / 8));
}

}  // namespace

const KernelTable* find_kernels(const std::string& name, std::string* error) {
  if (name.empty()) {
    // The environment is read once: a call takes microseconds.
    static std::string best_error;
    static const Isa* const best = best_isa(&best_error);
    *error = best_error;
    return best == nullptr ? nullptr : &best->table();
  }
  const Isa* isa = find_isa(name, error);
  return isa == nullptr ? nullptr : &isa->table();
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) {
    if (isa.supported) names.push_back(isa.name);
  }
  return names;
}

std::string default_isa(std::string* error) {
  const Isa* isa = best_isa(error);
  return isa == nullptr ? "" : isa->name;
}

std::string dot(const Dot& dot, const KernelTable& kernels, Pool& pool) {
  const Leaf& leaf = *dot.leaf;
  const std::string error = check_sizes(leaf);
  if (!error.empty()) return error;
  const Kernel& kernel = kernels.kernels[static_cast<int>(leaf.format)];
  if (kernel.run == nullptr) {
    return std::string(format_info(leaf.format).name) + ": has no native kernel";
  }
  if (dot.rows != nullptr) {
    std::memset(dot.y, 0, dot.batch * leaf.n_out * sizeof(float));
  }
  const std::vector<int32_t> panels = active_panels(panels_of(leaf), dot.rows);
  const int64_t n = static_cast<int64_t>(panels.size());
  if (n == 0 || dot.batch == 0) return "";
  const PreparedActivations x(dot.x, dot.batch, leaf.n_in, dot.cols, kernel.needs,
                              sum_inputs_of(leaf), kernels);
  const Call call = {&leaf, &x.get(), panels.data(), dot.y};
  const int64_t chunks = count_chunks(n, pool.threads());
  parallel(pool, chunks, [&](int64_t chunk) {
    kernel.run(call, n * chunk / chunks, n * (chunk + 1) / chunks);
  });
  return "";
}

}  // namespace sparse_jax
