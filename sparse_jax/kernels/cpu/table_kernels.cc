// The kernels of one instruction set, by format.
#include "activation_kernels.h"
#include "bandwidth_kernels.h"
#include "bitmask_kernels.h"
#include "dense_kernels.h"
#include "ell_kernels.h"
#include "group_kernels.h"
#include "n16_kernels.h"

namespace sparse_jax {
namespace SPARSE_JAX_ISA {

// AVX2 gathers floats byte by byte.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
static constexpr unsigned kGatherNeeds = kNeedPlanes;
#else
static constexpr unsigned kGatherNeeds = 0;
#endif

// In the order of the enum Format; {0, nullptr} is a format not built yet.
static const KernelTable kTable = {
    {
        {0, dense_float32},
        {0, dense_bfloat16},
        {kNeedCodes, dense_int8},
        {kNeedCodes, dense_int4},
        {kNeedCodes, dense_int2},
        {0, bitmask_float32},
        {0, bitmask_bfloat16},
        {kNeedCodes, ell_int8},
        {kGatherNeeds, n16_float32},
        {kGatherNeeds, n16_bfloat16},
        {kNeedCodes, n16_int8},
        {kNeedCodes, n16_int4},
        {kNeedCodes | kNeedBiased, group_int4},
        {kNeedCodes | kNeedBiased, group_int4_u8},
    },
    quantize_row,
    split_planes,
    read_floats,
};

const KernelTable& table() { return kTable; }

}  // namespace SPARSE_JAX_ISA
}  // namespace sparse_jax
