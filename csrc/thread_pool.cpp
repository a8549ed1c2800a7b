#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace colbert_fast {
namespace {

using Body = std::function<void(std::size_t, std::size_t)>;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Waits for `ready` without sleeping, for some hundred microseconds: a query is a dozen parallel
// stages of less than that, and waking a sleeping core costs as much as a stage.
template <class F> void spin_until(F ready) {
  constexpr int kSpins = 10'000;
  for (int i = 0; i < kSpins && !ready(); ++i) relax();
}

struct Job {
  const Body *body;
  std::size_t n, grain;
  std::atomic<std::size_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    for (;;) {
      const std::size_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      try {
        (*body)(begin, std::min(begin + grain, n));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n, std::memory_order_relaxed);
      }
    }
  }
};

// Workers are detached and the pool is never destroyed: a thread asleep at process exit is
// harmless, a destructor racing with the interpreter's shutdown is not.
struct Pool {
  std::mutex busy;
  std::mutex mutex;
  std::condition_variable wake, done;
  std::size_t workers = 0, wanted = 0;
  // Written under the mutex; read without it only to spin.
  std::atomic<std::size_t> running{0};
  std::atomic<unsigned long long> generation{0};
  Job *job = nullptr;

  void loop(std::size_t index) {
    unsigned long long seen = 0;
    for (;;) {
      spin_until([&] { return generation != seen; });
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return generation != seen; });
      seen = generation;
      if (index >= wanted || job == nullptr) continue;
      ++running;
      Job *current = job;
      lock.unlock();
      current->work();
      lock.lock();
      if (--running == 0) done.notify_all();
    }
  }

  void run(Job &current, std::size_t helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      for (; workers < helpers; ++workers) {
        std::thread([this, index = workers] { loop(index); }).detach();
      }
      job = &current, wanted = helpers, ++generation;
    }
    wake.notify_all();
    current.work();
    {
      const std::lock_guard<std::mutex> lock(mutex);
      job = nullptr; // a worker that wakes late finds nothing to do
    }
    spin_until([&] { return running == 0; });
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [&] { return running == 0; });
  }
};

Pool *pool = new Pool;
thread_local bool inside = false;

std::size_t default_threads() {
  if (const char *text = std::getenv("COLBERT_FAST_NUM_THREADS");
      text != nullptr && *text != '\0') {
    char *end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*end != '\0' || n < 1 || n > 4096)
      throw std::runtime_error("COLBERT_FAST_NUM_THREADS must be a number from 1 to 4096, got '" +
                               std::string(text) + "'");
    return static_cast<std::size_t>(n);
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    return static_cast<std::size_t>(std::max(1, CPU_COUNT(&set)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<std::size_t> threads{0};

} // namespace

std::size_t num_threads() {
  if (threads.load() == 0) {
#if !defined(_WIN32)
    // A forked child has none of the parent's workers, and maybe a lock held by one: start afresh.
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
    threads.store(default_threads());
  }
  return threads.load();
}

void set_num_threads(std::size_t n) {
  num_threads();
  threads.store(n);
}

void parallel_for(std::size_t n, std::size_t grain, const Body &body) {
  const std::size_t helpers = std::min(num_threads(), (n + grain - 1) / grain);
  if (n == 0) return;
  if (helpers > 1 && !inside) {
    std::unique_lock<std::mutex> alone(pool->busy, std::try_to_lock);
    if (alone.owns_lock()) {
      const Body marked = [&body](std::size_t begin, std::size_t end) {
        inside = true;
        struct Leave {
          ~Leave() { inside = false; }
        } leave;
        body(begin, end);
      };
      Job job;
      job.body = &marked, job.n = n, job.grain = grain;
      pool->run(job, helpers - 1);
      if (job.error) std::rethrow_exception(job.error);
      return;
    }
  }
  for (std::size_t begin = 0; begin < n; begin += grain) body(begin, std::min(begin + grain, n));
}

} // namespace colbert_fast
