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
//
// The leader waits for tasks, never for members: who is late, because others use its processor, finds the work done and joins the
// next run. Measured with one busy process beside two threads: a decoded token then takes a tenth of the time.
class Team {
 public:
  explicit Team(int num_threads) : num_threads_(num_threads) {}

  // The team whose leader is the calling thread, or null.
  static Team *&current() {
    static thread_local Team *team = nullptr;
    return team;
  }

  int num_threads() const { return num_threads_; }

  // The leader's: every task once, then all are done. Fewer than 2^32 tasks.
  template <typename F> void run(int64_t num_tasks, F &f) {
    call_ = [](void *context, int64_t task, int thread) { (*static_cast<F *>(context))(task, thread); };
    context_ = &f;
    num_tasks_ = static_cast<uint32_t>(num_tasks);
    left_.store(num_tasks_, std::memory_order_relaxed);
    open(num_tasks_);
    work(0);
    for (int turn = 0; left_.load(std::memory_order_acquire) != 0; ++turn)
      if (turn < kSpins)
        pause();
      else
        wait_while(left_);
  }

  // The leader's: members return from `serve`.
  void disband() {
    over_.store(true, std::memory_order_relaxed);
    open(0);
  }

  // A member's: takes part in every run that it is in time for, until the team is disbanded.
  void serve(int thread) {
    for (uint64_t seen = 0;;) {
      uint64_t now = tickets_.load(std::memory_order_acquire);
      for (int turn = 0; run_of(now) == run_of(seen) && waiting(now) == 0; now = tickets_.load(std::memory_order_acquire))
        if (++turn < kSpins)
          pause();
        else
          tickets_.wait(now, std::memory_order_acquire);
      seen = now;
      if (over_.load(std::memory_order_relaxed)) return;
      work(thread);
    }
  }

 private:
  // About 100 microseconds on the x86-64 processors where it was measured, nowhere else: longer than most steps' unequal
  // ends, shorter than a time slice.
  static constexpr int kSpins = 4000;

  // The number of the run in the upper half, the tasks nobody has taken in the lower.
  static uint32_t run_of(uint64_t tickets) { return static_cast<uint32_t>(tickets >> 32); }
  static uint32_t waiting(uint64_t tickets) { return static_cast<uint32_t>(tickets); }

  void open(uint32_t num_tasks) {
    const uint64_t next = static_cast<uint64_t>(run_of(tickets_.load(std::memory_order_relaxed)) + 1) << 32;
    tickets_.store(next | num_tasks, std::memory_order_release);
    tickets_.notify_all();
  }

  static void wait_while(std::atomic<uint32_t> &left) {
    const uint32_t found = left.load(std::memory_order_acquire);
    if (found) left.wait(found, std::memory_order_acquire);
  }

  // Takes tasks while there are any. Whoever holds a task keeps its run from ending, so what `run` set is there to be read.
  void work(int thread) {
    uint64_t tickets = tickets_.load(std::memory_order_acquire);
    while (waiting(tickets) != 0) {
      if (!tickets_.compare_exchange_weak(tickets, tickets - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      call_(context_, num_tasks_ - waiting(tickets), thread);
      if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1 && thread != 0) left_.notify_one();
      tickets = tickets_.load(std::memory_order_acquire);
    }
  }

  const int num_threads_;
  void (*call_)(void *, int64_t, int) = nullptr;
  void *context_ = nullptr;
  uint32_t num_tasks_ = 0;
  std::atomic<bool> over_{false};
  alignas(64) std::atomic<uint64_t> tickets_{0};
  alignas(64) std::atomic<uint32_t> left_{0};
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
