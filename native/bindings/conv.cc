// Checks what Python hands over, releases the GIL, calls the kernels. Computes nothing.
#include "bindings/conv.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>

namespace nb = nanobind;

namespace tensure {

using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// images, height, width; images as padded by the layout
using Shape = std::array<int64_t, 3>;

Conv2d to_conv(const Geometry &g) {
  for (int i = 0; i < 9; ++i)
    if (g[i] < 1) throw std::invalid_argument("a size, stride, dilation or group count is below 1");
  for (int i = 9; i < 13; ++i)
    if (g[i] < 0) throw std::invalid_argument("a padding is negative");
  if (g[0] % g[2] || g[1] % g[2]) throw std::invalid_argument("groups do not divide the channels");
  if (g[13] < 0 || g[13] > 4 || g[14] < 0 || g[14] > 4) throw std::invalid_argument("no such layout or algorithm");
  return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11], g[12], static_cast<Layout>(g[13]),
          static_cast<ConvAlgorithm>(g[14]), static_cast<unsigned>(g[15])};
}

static void expect(size_t found, int64_t wanted, const char *message) {
  expect(static_cast<int64_t>(found), wanted, message);
}

static void run_conv2d(const Geometry &geometry, const Shape &shape, const Input &x, const Input &packed,
                       const std::optional<Input> &bias, const std::optional<Input> &residual, const Output &out,
                       int activation, int num_threads, const Bytes &workspace) {
  const Conv2d conv = to_conv(geometry);
  const auto [n, h, w] = shape;
  const int64_t out_floats = product({n, conv.out_channels, conv2d_out_height(conv, h), conv2d_out_width(conv, w)});
  const int64_t lanes = conv.layout == Layout::chwn8 ? 8 : conv.layout == Layout::chwn16 ? 16 : 1;
  if (n % lanes) throw std::invalid_argument("the images do not fill the lanes of the layout");
  if (activation < 0 || activation > 3 || num_threads < 1) throw std::invalid_argument("no such activation or threads");
  expect(x.size(), product({n, conv.in_channels, h, w}), "x does not have the size of its shape");
  expect(packed.size(), conv2d_packed_size(conv), "the weights are not packed for this convolution");
  expect(out.size(), out_floats, "out does not have the size of the output");
  if (bias) expect(bias->size(), conv.out_channels, "bias is not one float for each output channel");
  if (residual) expect(residual->size(), out_floats, "residual does not have the size of the output");
  const Workspace need = conv2d_workspace(conv, n, h, w, num_threads);
  if (static_cast<int64_t>(workspace.size()) < need.shared + need.per_thread * num_threads)
    throw std::invalid_argument("the workspace is too small");
  if (workspace.size() && reinterpret_cast<uintptr_t>(workspace.data()) % 64) throw std::invalid_argument("the workspace is not aligned");
  const Conv2dRun run{n, h, w, x.data(), packed.data(), bias ? bias->data() : nullptr,
                      residual ? residual->data() : nullptr, out.data(), static_cast<Activation>(activation), num_threads,
                      workspace.data()};
  bool done;
  {
    nb::gil_scoped_release unlocked;
    done = conv2d(conv, run);
  }
  if (!done) throw std::runtime_error("no instruction set is in use");
}

void bind_conv(nb::module_ &m) {
  m.def("conv2d_packed_size", [](const Geometry &g) { return conv2d_packed_size(to_conv(g)); });
  m.def(
      "conv2d_pack",
      [](const Geometry &geometry, Input w, Output packed) {
        const Conv2d conv = to_conv(geometry);
        expect(w.size(), product({conv.out_channels, conv.in_channels / conv.groups, conv.kernel_h, conv.kernel_w}),
               "w does not have the size of the weights");
        expect(packed.size(), conv2d_packed_size(conv), "packed does not have the packed size");
        nb::gil_scoped_release unlocked;
        conv2d_pack(conv, w.data(), packed.data());
      },
      nb::arg("geometry"), nb::arg("w").noconvert(), nb::arg("packed").noconvert());
  m.def("conv2d_workspace", [](const Geometry &g, const Shape &s, int num_threads) {
    const Workspace need = conv2d_workspace(to_conv(g), s[0], s[1], s[2], num_threads);
    return std::pair(need.shared, need.per_thread);
  });
  m.def("conv2d", &run_conv2d, nb::arg("geometry"), nb::arg("shape"), nb::arg("x").noconvert(),
        nb::arg("packed").noconvert(), nb::arg("bias").noconvert().none(), nb::arg("residual").noconvert().none(),
        nb::arg("out").noconvert(), nb::arg("activation"), nb::arg("num_threads"), nb::arg("workspace").noconvert());
  m.def(
      "im2win",
      [](const Geometry &geometry, const Shape &s, Input x, Output out, int num_threads) {
        const Conv2d conv = to_conv(geometry);
        expect(x.size(), product({s[0], conv.in_channels, s[1], s[2]}), "x does not have the size of its shape");
        expect(out.size(), im2win_size(conv, s[0], s[1], s[2]), "out does not have the size of the im2win tensor");
        nb::gil_scoped_release unlocked;
        im2win(conv, s[0], s[1], s[2], x.data(), out.data(), num_threads);
      },
      nb::arg("geometry"), nb::arg("shape"), nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::arg("num_threads"));
  m.def(
      "convert_layout",
      [](int source, int target, const std::array<int64_t, 4> &s, Input x, Output out, int num_threads) {
        if (source < 0 || source > 4 || target < 0 || target > 4) throw std::invalid_argument("no such layout");
        const auto padded = [&](int layout) {
          const int64_t b = layout == 3 ? 8 : layout == 4 ? 16 : 1;
          return product({(s[0] + b - 1) / b * b, s[1], s[2], s[3]});
        };
        expect(x.size(), padded(source), "x does not have the size of its shape");
        expect(out.size(), padded(target), "out does not have the size of its shape");
        nb::gil_scoped_release unlocked;
        convert_layout(static_cast<Layout>(source), static_cast<Layout>(target), s[0], s[1], s[2], s[3], x.data(), out.data(),
                       num_threads);
      },
      nb::arg("source"), nb::arg("target"), nb::arg("shape"), nb::arg("x").noconvert(), nb::arg("out").noconvert(),
      nb::arg("num_threads"));
}

}  // namespace tensure
