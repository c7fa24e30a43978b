#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sparse_jax {
namespace {

// Outlives the call: a helper that starts late finds no chunk left and goes.
struct Shared {
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
  int64_t chunks;
  const std::function<void(int64_t)>* work;

  void take_chunks() {
    for (int64_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
      (*work)(chunk);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

}  // namespace

void parallel(Pool& pool, int64_t chunks, const std::function<void(int64_t)>& work) {
  const int64_t helpers = std::min<int64_t>(pool.threads(), chunks) - 1;
  if (helpers <= 0) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) work(chunk);
    return;
  }
  auto shared = std::make_shared<Shared>();
  shared->chunks = chunks;
  shared->work = &work;
  for (int64_t i = 0; i < helpers; ++i) {
    pool.schedule([shared] { shared->take_chunks(); });
  }
  shared->take_chunks();
  // The chunks still open are short and running: spin first, then let others run.
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < chunks; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> tasks;
  bool stop = false;
  std::vector<std::thread> threads;

  void serve() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [this] { return stop || !tasks.empty(); });
        if (tasks.empty()) return;
        task = std::move(tasks.front());
        tasks.pop_front();
      }
      task();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(new State) {
  for (int i = 1; i < threads; ++i) {
    state_->threads.emplace_back([this] { state_->serve(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
  delete state_;
}

int ThreadPool::threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::schedule(std::function<void()> task) {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->tasks.push_back(std::move(task));
  }
  state_->wake.notify_one();
}

}  // namespace sparse_jax
