// Checks what Python hands over, releases the GIL, calls the loops. Computes nothing.
#include "peak/peak.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

namespace nb = nanobind;

namespace tensure {

static PeakKind to_kind(int kind) {
  if (kind < 0 || kind > 2) throw std::invalid_argument("no such kind");
  return static_cast<PeakKind>(kind);
}

void bind_peak(nb::module_ &m) {
  m.def("peak_lacks", [](int kind) { return peak_lacks(to_kind(kind)); }, nb::arg("kind"));
  m.def(
      "measure_peak",
      [](int kind, double seconds) {
        if (!(seconds > 0 && seconds <= 60)) throw std::invalid_argument("seconds is not within 0 and 60");
        const PeakKind checked = to_kind(kind);
        nb::gil_scoped_release unlocked;
        return measure_peak(checked, seconds);
      },
      nb::arg("kind"), nb::arg("seconds"));
}

}  // namespace tensure
