// Dispatch and threads. Compiled for the platform's baseline: nothing here may need more.
#include "gemv/gemv.h"

#include <algorithm>

#include "common/isa.h"
#include "gemv/table.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const GemvTable gemv_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &gemv_##isa,
static const GemvTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

// Waking a second thread costs as much as reading this many bytes, or doing this many multiplications.
constexpr int64_t kBytesPerThread = 128 << 10;
constexpr int64_t kProductsPerThread = 512 << 10;

const GemvTable *gemv_table() {
  const int isa = isa_in_use();
  return isa < 0 ? nullptr : kTables[isa];
}

GemvKernels gemv_kernels(GemvArithmetic arithmetic) {
  const GemvTable *const with = gemv_table();
  if (!with) return {nullptr, nullptr};
  const bool vnni = cpu_has_vnni();
  switch (arithmetic) {
    case GemvArithmetic::exact: return {with->exact, nullptr};
    case GemvArithmetic::fine: return {with->fine_vnni && vnni ? with->fine_vnni : with->fine, with->quantize_fine};
    case GemvArithmetic::fast: return {with->fast_vnni && vnni ? with->fast_vnni : with->fast, with->quantize};
  }
  return {nullptr, nullptr};
}

// Whole blocks of 16 rows to each thread, in order.
static void run(GemvKernel kernel, const GemvJob &job, int num_threads) {
  const GemvWeights &w = job.weights;
  if (job.batch <= 0 || w.num_rows <= 0) return;
  const int64_t blocks = (w.num_rows + kGemvRows - 1) / kGemvRows;
  const int64_t bytes = gemv_q_bytes(w.format, w.num_rows, w.num_cols, w.group);
  const int64_t work = std::max(bytes / kBytesPerThread, w.num_rows * w.num_cols * job.batch / kProductsPerThread);
  const int parts = static_cast<int>(std::clamp<int64_t>(std::min(work, blocks), 1, std::max(num_threads, 1)));
  if (parts == 1) return kernel(job, 0, w.num_rows);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static, 1)
#endif
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = blocks * part / parts * kGemvRows, end = blocks * (part + 1) / parts * kGemvRows;
    kernel(job, begin, std::min(end, w.num_rows));
  }
}

bool gemv_exact(const GemvWeights &weights, const float *x, int64_t batch, int64_t x_stride, float *y, int64_t y_stride,
                int num_threads) {
  const GemvTable *const with = gemv_table();
  if (!with) return false;
  run(with->exact, {weights, x, x_stride, nullptr, batch, y, y_stride}, num_threads);
  return true;
}

bool gemv_exact_is_fused() { return gemv_table() && gemv_table()->fused; }

static int planes(GemvArithmetic arithmetic) { return arithmetic == GemvArithmetic::fine ? 2 : 1; }

int64_t gemv_activation_bytes(GemvArithmetic arithmetic, int64_t num_cols, int64_t batch) {
  return gemv_activations(num_cols, planes(arithmetic)).bytes * batch;
}

bool gemv_quantize(GemvArithmetic arithmetic, const float *x, int64_t batch, int64_t num_cols, int64_t x_stride,
                   uint8_t *activations) {
  const auto quantize = gemv_kernels(arithmetic).quantize;
  if (!quantize) return false;
  const int64_t bytes = gemv_activation_bytes(arithmetic, num_cols, 1);
  for (int64_t b = 0; b < batch; ++b) quantize(x + b * x_stride, num_cols, activations + b * bytes);
  return true;
}

bool gemv_rounded(GemvArithmetic arithmetic, const GemvWeights &weights, const uint8_t *activations, int64_t batch, float *y,
                  int64_t y_stride, int num_threads) {
  const GemvKernels kernels = gemv_kernels(arithmetic);
  if (!kernels.quantize) return false;
  run(kernels.multiply, {weights, nullptr, 0, activations, batch, y, y_stride}, num_threads);
  return true;
}

uint64_t gemv_read(const uint8_t *data, int64_t bytes, int streams, int64_t prefetch, int num_threads) {
  const GemvTable *const with = gemv_table();
  if (!with) return 0;
  const int64_t units = bytes / kGemvReadBytes;
  const int parts = static_cast<int>(std::clamp<int64_t>(units, 1, std::max(num_threads, 1)));
  uint64_t all = 0;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static, 1) reduction(^ : all) if (parts > 1)
#endif
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = units * part / parts * kGemvReadBytes, end = units * (part + 1) / parts * kGemvReadBytes;
    all ^= with->read(data + begin, end - begin, streams, prefetch);
  }
  return all;
}

}  // namespace tensure
