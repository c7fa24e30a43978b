// Sixteen lanes, one for each output of a panel, in the instruction set of this file.
//
// CMake compiles every *_kernels.cc once per instruction set, with SPARSE_JAX_ISA set
// to the namespace of the result: portable, avx2 or avx512.
#ifndef SPARSE_JAX_KERNELS_CPU_SIMD_H_
#define SPARSE_JAX_KERNELS_CPU_SIMD_H_

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

#endif  // SPARSE_JAX_KERNELS_CPU_SIMD_H_
