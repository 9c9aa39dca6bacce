// Checks what Python hands over, releases the GIL, calls the kernels. Computes nothing.
#include "dotconv/dotconv.h"

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

#include "bindings/conv.h"

namespace nb = nanobind;

namespace tensure {

template <typename T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// images, height, width
using Shape = std::array<int64_t, 3>;
// zero_point, out_zero_point, low, high
using Numbers = std::array<int32_t, 4>;

static Conv2d to_dot_conv(const Geometry &geometry) {
  const Conv2d conv = to_conv(geometry);
  if (conv.layout != Layout::nhwc || conv.algorithm != ConvAlgorithm::direct || conv.switches != kAllSwitches)
    throw std::invalid_argument("not a direct convolution in NHWC");
  return conv;
}

static DotElement to_element(int element) {
  if (element < 0 || element > 2) throw std::invalid_argument("no such element");
  return static_cast<DotElement>(element);
}

template <typename T>
static const T *each_channel(const std::optional<Vector<const T>> &vector, const Conv2d &conv, bool needed) {
  if (needed && !vector) throw std::invalid_argument("a number for each output channel is missing");
  if (!vector) return nullptr;
  expect(static_cast<int64_t>(vector->size()), conv.out_channels, "not one number for each output channel");
  return vector->data();
}

static void run_dotconv(const Geometry &geometry, const Shape &shape, int element, int output, const Vector<const uint8_t> &x,
                        const Vector<const uint8_t> &packed, const std::optional<Vector<const int32_t>> &bias_ints,
                        const std::optional<Vector<const float>> &bias_floats,
                        const std::optional<Vector<const int32_t>> &multiplier,
                        const std::optional<Vector<const int32_t>> &shift, const std::optional<Vector<const float>> &scale,
                        const Numbers &numbers, int activation, const Vector<uint8_t> &out, int num_threads,
                        const Vector<uint8_t> &workspace) {
  const Conv2d conv = to_dot_conv(geometry);
  const auto [n, h, w] = shape;
  DotRun run{};
  run.num_images = n;
  run.height = h;
  run.width = w;
  run.element = to_element(element);
  if (output < 0 || output > 4 || activation < 0 || activation > 3 || num_threads < 1 || n < 0)
    throw std::invalid_argument("no such output, activation, threads or images");
  run.output = static_cast<DotOutput>(output);
  run.activation = static_cast<Activation>(activation);
  run.num_threads = num_threads;
  const bool halves = run.element == DotElement::bf16, narrow = run.output == DotOutput::s8 || run.output == DotOutput::u8;
  if (halves ? run.output != DotOutput::f32 && run.output != DotOutput::bf16 : run.output == DotOutput::bf16)
    throw std::invalid_argument("no such output of such elements");
  const int64_t out_bytes = narrow ? 1 : run.output == DotOutput::bf16 ? 2 : 4;
  expect(static_cast<int64_t>(x.size()), n * conv.in_channels * h * w * (halves ? 2 : 1), "x does not have the size of its shape");
  expect(static_cast<int64_t>(packed.size()), dotconv_packed_size(conv, halves), "the weights are not packed for this convolution");
  expect(static_cast<int64_t>(out.size()), n * conv.out_channels * conv2d_out_height(conv, h) * conv2d_out_width(conv, w) * out_bytes,
         "out does not have the size of the output");
  run.x = x.data();
  run.packed = packed.data();
  run.out = out.data();
  run.bias_ints = each_channel(bias_ints, conv, false);
  run.bias_floats = each_channel(bias_floats, conv, false);
  run.multiplier = each_channel(multiplier, conv, narrow);
  run.shift = each_channel(shift, conv, narrow);
  run.scale = each_channel(scale, conv, !halves && run.output == DotOutput::f32);
  run.zero_point = numbers[0];
  run.out_zero_point = numbers[1];
  run.low = numbers[2];
  run.high = numbers[3];
  if (run.shift)
    for (int64_t c = 0; c < conv.out_channels; ++c)
      if (run.shift[c] < -31 || run.shift[c] > 30) throw std::invalid_argument("a shift is out of range");
  const Workspace need = dotconv_workspace(conv, run.element, n, h, w, num_threads);
  if (static_cast<int64_t>(workspace.size()) < need.shared + need.per_thread * num_threads)
    throw std::invalid_argument("the workspace is too small");
  if (workspace.size() && reinterpret_cast<uintptr_t>(workspace.data()) % 64) throw std::invalid_argument("the workspace is not aligned");
  run.workspace = workspace.data();
  bool done;
  {
    nb::gil_scoped_release unlocked;
    done = dotconv(conv, run);
  }
  if (!done) throw std::runtime_error("the instruction set in use cannot do this");
}

void bind_dotconv(nb::module_ &m) {
  m.def("dotconv_runs", &dotconv_runs, nb::arg("halves"));
  m.def("dotconv_packed_size", [](const Geometry &g, bool halves) { return dotconv_packed_size(to_dot_conv(g), halves); });
  m.def(
      "dotconv_pack",
      [](const Geometry &geometry, bool halves, Vector<const uint8_t> w, Vector<uint8_t> packed) {
        const Conv2d conv = to_dot_conv(geometry);
        const int64_t elements = conv.out_channels * (conv.in_channels / conv.groups) * conv.kernel_h * conv.kernel_w;
        expect(static_cast<int64_t>(w.size()), elements * (halves ? 2 : 1), "w does not have the size of the weights");
        expect(static_cast<int64_t>(packed.size()), dotconv_packed_size(conv, halves), "packed does not have the packed size");
        if (reinterpret_cast<uintptr_t>(packed.data()) % 4) throw std::invalid_argument("packed is not aligned");
        nb::gil_scoped_release unlocked;
        dotconv_pack(conv, halves, w.data(), packed.data());
      },
      nb::arg("geometry"), nb::arg("halves"), nb::arg("w").noconvert(), nb::arg("packed").noconvert());
  m.def("dotconv_workspace", [](const Geometry &g, const Shape &s, int element, int num_threads) {
    const Workspace need = dotconv_workspace(to_dot_conv(g), to_element(element), s[0], s[1], s[2], num_threads);
    return std::pair(need.shared, need.per_thread);
  });
  m.def("dotconv", &run_dotconv, nb::arg("geometry"), nb::arg("shape"), nb::arg("element"), nb::arg("output"),
        nb::arg("x").noconvert(), nb::arg("packed").noconvert(), nb::arg("bias_ints").noconvert().none(),
        nb::arg("bias_floats").noconvert().none(), nb::arg("multiplier").noconvert().none(), nb::arg("shift").noconvert().none(),
        nb::arg("scale").noconvert().none(), nb::arg("numbers"), nb::arg("activation"), nb::arg("out").noconvert(),
        nb::arg("num_threads"), nb::arg("workspace").noconvert());
}

}  // namespace tensure
