// Work shared between the calling thread and helpers of somebody else's pool.
#ifndef SPARSE_JAX_KERNELS_CPU_POOL_H_
#define SPARSE_JAX_KERNELS_CPU_POOL_H_

#include <cstdint>
#include <functional>

namespace sparse_jax {

// Where helpers come from: XLA's pool, or plain threads. Tasks may start late or never.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int threads() const = 0;  // the calling thread included
  virtual void schedule(std::function<void()> task) = 0;
};

// Calls work(chunk) for every chunk in [0, chunks) and returns when all have ended.
//
// The caller works too and takes chunks from the counter that it shares with the
// helpers; at the end it waits only for chunks that a helper has already taken. So a
// pool whose threads are all busy costs nothing, and cannot dead-lock.
void parallel(Pool& pool, int64_t chunks, const std::function<void(int64_t)>& work);

// Helpers on std::thread, for programs without XLA; `threads` counts the caller.
class ThreadPool : public Pool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool() override;
  int threads() const override;
  void schedule(std::function<void()> task) override;

 private:
  struct State;
  State* state_;
};

}  // namespace sparse_jax

#endif  // SPARSE_JAX_KERNELS_CPU_POOL_H_
