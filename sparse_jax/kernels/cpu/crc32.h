// The CRC-32 of zlib, gzip and PNG: reflected polynomial 0xEDB88320.
#ifndef SPARSE_JAX_KERNELS_CPU_CRC32_H_
#define SPARSE_JAX_KERNELS_CPU_CRC32_H_

#include <cstddef>
#include <cstdint>

namespace sparse_jax {

uint32_t crc32_of(const uint8_t* bytes, size_t count);

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_CRC32_H_
