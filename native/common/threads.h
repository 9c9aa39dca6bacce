// Tasks over at most a given number of threads. Which thread does which task never matters to a result.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace tensure {

// Calls f(task, thread) for every task once; thread is below num_threads. One thread never starts an OpenMP runtime.
template <typename F> void for_each_task(int64_t num_tasks, int num_threads, F f) {
#if defined(_OPENMP)
  const int threads = static_cast<int>(std::min<int64_t>(num_threads, num_tasks));
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int me = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < num_tasks; ++task) f(task, me);
    }
    return;
  }
#endif
  for (int64_t task = 0; task < num_tasks; ++task) f(task, 0);
}

}  // namespace tensure
