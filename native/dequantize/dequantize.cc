// Dispatch and threads. Compiled for the platform's baseline: nothing here may need more.
#include "dequantize/dequantize.h"

#include <algorithm>

#include "common/isa.h"
#include "dequantize/table.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const DequantizeTable dequantize_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &dequantize_##isa,
static const DequantizeTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

// Below this many blocks (128 KiB of output) waking a second thread costs more than it saves.
constexpr int64_t kBlocksPerThread = 1024;

bool dequantize(DequantizeEncoding encoding, const uint8_t *blocks, int64_t num_blocks, float *out, int num_threads) {
  const int isa = isa_in_use();
  if (isa < 0) return false;
  const DequantizeKernel kernel = kTables[isa]->kernels[static_cast<int>(encoding)];
  const int64_t block_bytes = dequantize_block_bytes(encoding);
  const int parts = static_cast<int>(std::clamp<int64_t>(num_blocks / kBlocksPerThread, 1, std::max(num_threads, 1)));
  if (parts == 1) {
    kernel(blocks, num_blocks, out);
    return true;
  }
  const int64_t step = (num_blocks + parts - 1) / parts;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static, 1)
#endif
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = std::min(num_blocks, part * step);
    const int64_t end = std::min(num_blocks, begin + step);
    kernel(blocks + begin * block_bytes, end - begin, out + begin * kDequantizeElements);
  }
  return true;
}

bool dequantize_has_threads() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace tensure
