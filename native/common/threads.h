// Tasks over at most a given number of threads. Which thread does which task never matters to a result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

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
  explicit Team(int num_threads) : num_threads_(num_threads) {}

  // The team whose leader is the calling thread, or null.
  static Team *&current() {
    static thread_local Team *team = nullptr;
    return team;
  }

  int num_threads() const { return num_threads_; }

  // The leader's: every task once, then all are done.
  template <typename F> void run(int64_t num_tasks, F &f) {
    call_ = [](void *context, int64_t task, int thread) { (*static_cast<F *>(context))(task, thread); };
    context_ = &f;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(num_threads_ - 1, std::memory_order_relaxed);
    announce();
    work(0);
    for (int turn = 0; busy_.load(std::memory_order_acquire) != 0; ++turn)
      if (turn < kSpins)
        pause();
      else
        wait_while(busy_);
  }

  // The leader's: members return from `serve`.
  void disband() {
    call_ = nullptr;
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
      if (!call_) return;
      work(thread);
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }

 private:
  // About 100 microseconds on the x86-64 processors where it was measured, nowhere else: longer than most steps' unequal
  // ends, shorter than a time slice.
  static constexpr int kSpins = 4000;

  void announce() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  static void wait_while(std::atomic<int> &busy) {
    const int found = busy.load(std::memory_order_acquire);
    if (found) busy.wait(found, std::memory_order_acquire);
  }

  void work(int thread) {
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < num_tasks_;) call_(context_, task, thread);
  }

  const int num_threads_;
  void (*call_)(void *, int64_t, int) = nullptr;
  void *context_ = nullptr;
  int64_t num_tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
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
