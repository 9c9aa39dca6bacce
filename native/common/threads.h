// Tasks over at most a given number of threads. Which thread does which task never matters to a result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tensure {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // yield does nothing on most cores, isb waits a little; not timed by us
#endif
}

// Threads that stay together for a whole run of steps: between two steps they spin for a bounded time and then sleep, so
// that a short step does not pay for waking anybody, and a long pause burns no processor.
class Team {
 public:
  explicit Team(int num_threads) : num_threads_(num_threads), shares_(new Share[num_threads]) {}

  // The team whose leader is the calling thread, or null.
  static Team *&current() {
    static thread_local Team *team = nullptr;
    return team;
  }

  // The leader's: every task once, then all are done. A member that comes when nothing is left is not waited for.
  template <typename F> void run(int64_t num_tasks, F &f) {
    call_ = [](void *context, int64_t task, int thread) { (*static_cast<F *>(context))(task, thread); };
    context_ = &f;
    for (int thread = 0; thread < num_threads_; ++thread) {
      shares_[thread].next.store(num_tasks * thread / num_threads_, std::memory_order_relaxed);
      shares_[thread].end = num_tasks * (thread + 1) / num_threads_;
    }
    inside_.fetch_and(~kClosed, std::memory_order_release);
    announce();
    work(0);
    uint32_t inside = inside_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    for (int turn = 0; inside != kClosed; inside = inside_.load(std::memory_order_acquire))
      if (++turn < kSpins)
        pause();
      else
        inside_.wait(inside, std::memory_order_acquire);
  }

  // The leader's: members return from `serve`.
  void disband() {
    disbanded_.store(true, std::memory_order_relaxed);
    announce();
  }

  // A member's: takes part in every run until the team is disbanded.
  void serve(int thread) {
    for (uint32_t seen = 0;;) {
      uint32_t now = round_.load(std::memory_order_acquire);
      for (int turn = 0; now == seen; now = round_.load(std::memory_order_acquire))
        if (++turn < kSpins)
          pause();
        else
          round_.wait(seen, std::memory_order_acquire);
      seen = now;
      if (disbanded_.load(std::memory_order_relaxed)) return;
      if (!(inside_.fetch_add(1, std::memory_order_acq_rel) & kClosed)) work(thread);
      if (inside_.fetch_sub(1, std::memory_order_acq_rel) == kClosed + 1) inside_.notify_one();
    }
  }

 private:
  // About 100 microseconds on the x86-64 processors where it was measured, nowhere else: longer than most steps' unequal
  // ends, shorter than a time slice.
  static constexpr int kSpins = 4000;
  // A round that takes no more members: everything they would read may be gone.
  static constexpr uint32_t kClosed = uint32_t{1} << 31;

  void announce() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  // A run of neighbouring tasks for each thread: what it wrote in one step it mostly finds in its own caches in the next.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // The thread's own tasks, then what the others have left.
  void work(int thread) {
    for (int i = 0; i < num_threads_; ++i) {
      Share &share = shares_[(thread + i) % num_threads_];
      for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) call_(context_, task, thread);
    }
  }

  const int num_threads_;
  void (*call_)(void *, int64_t, int) = nullptr;
  void *context_ = nullptr;
  const std::unique_ptr<Share[]> shares_;
  std::atomic<bool> disbanded_{false};
  alignas(64) std::atomic<uint32_t> inside_{kClosed};  // members in the round, and whether it is closed
  alignas(64) std::atomic<uint32_t> round_{0};
};

// Calls f(task, thread) for every task once; thread is below num_threads. One thread never starts an OpenMP runtime.
template <typename F> void for_each_task(int64_t num_tasks, int num_threads, F f) {
  const int threads = static_cast<int>(std::min<int64_t>(num_threads, num_tasks));
  if (threads > 1) {
    if (Team *team = Team::current()) return team->run(num_tasks, f);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    {
      const int me = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < num_tasks; ++task) f(task, me);
    }
    return;
#endif
  }
  for (int64_t task = 0; task < num_tasks; ++task) f(task, 0);
}

// Calls f() on the calling thread, with a team of OpenMP's threads behind every for_each_task in it.
template <typename F> void with_team([[maybe_unused]] int num_threads, F f) {
#if defined(_OPENMP)
  if (num_threads > 1 && !Team::current()) {
    Team *team = nullptr;
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp single
      team = new Team(omp_get_num_threads());  // as many as the runtime gives
      if (omp_get_thread_num() == 0) {
        Team::current() = team;
        f();
        Team::current() = nullptr;
        team->disband();
      } else {
        team->serve(omp_get_thread_num());
      }
    }
    delete team;
    return;
  }
#endif
  f();
}

}  // namespace tensure
