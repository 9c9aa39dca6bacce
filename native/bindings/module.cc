// The extension module tensure.kernels._native: one bind function for each family, and what dispatch decided.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "common/isa.h"

namespace nb = nanobind;

namespace tensure {
void bind_conv(nb::module_ &m);
void bind_decoder(nb::module_ &m);
void bind_dequantize(nb::module_ &m);
void bind_dotconv(nb::module_ &m);
void bind_peak(nb::module_ &m);
void bind_segment(nb::module_ &m);
void bind_survey(nb::module_ &m);
void bind_gemv(nb::module_ &m);
}

NB_MODULE(_native, m) {
  tensure::isa_in_use();  // decide now: a later change of the environment must not change bits half-way
  m.def("isa", [] {
    const int index = tensure::isa_in_use();
    return std::string(index < 0 ? "" : tensure::isas().items[index].name);
  });
  m.def("isa_asked", [] { return std::string(tensure::isa_asked()); });
  m.def("features", [] {
    std::vector<std::string> names;
    if (tensure::cpu_has_vnni()) names.emplace_back("vnni");
    if (tensure::cpu_has_bf16()) names.emplace_back("bf16");
    return names;
  });
  m.def("features_asked", [] { return std::string(tensure::features_asked()); });
  m.def("features_understood", [] { return tensure::features_understood(); });
  m.def("isas_built", [] {
    std::vector<std::string> names;
    for (int i = 0; i < tensure::isas().count; ++i) names.emplace_back(tensure::isas().items[i].name);
    return names;
  });
  m.def("isas_available", [] {
    std::vector<std::string> names;
    for (int i = 0; i < tensure::isas().count; ++i)
      if (tensure::isas().items[i].available) names.emplace_back(tensure::isas().items[i].name);
    return names;
  });
  tensure::bind_conv(m);
  tensure::bind_decoder(m);
  tensure::bind_dequantize(m);
  tensure::bind_dotconv(m);
  tensure::bind_peak(m);
  tensure::bind_segment(m);
  tensure::bind_survey(m);
  tensure::bind_gemv(m);
}
