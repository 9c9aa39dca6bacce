// A matrix of the gemv family as Python hands it over, for the bindings of every family that reads one.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdint>

#include "gemv/gemv.h"

namespace tensure {

using ConstBytes = nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// Borrows the arrays. Throws std::invalid_argument when a size does not fit the format.
GemvWeights to_gemv_weights(int format, int64_t num_rows, int64_t num_cols, int64_t group, const ConstBytes &q,
                            const ConstBytes &scales, const ConstBytes &minimums);

}  // namespace tensure
