// Checks what Python hands over, keeps the weights alive, releases the GIL, runs the steps. Computes nothing.
#include "segment/segment.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "bindings/conv.h"

namespace nb = nanobind;

namespace tensure {

using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ref = std::pair<bool, int64_t>;         // (whether an input, which input or byte offset)
using ImageNumbers = std::array<int64_t, 5>;  // layout, images, channels, height, width

// The steps, the sizes they were checked against, and the arrays they point into.
class BoundSegment {
 public:
  BoundSegment(std::vector<int64_t> input_floats, int64_t arena_bytes)
      : input_floats_(std::move(input_floats)), arena_bytes_(arena_bytes) {}

  void add_conv(const Geometry &geometry, const std::array<int64_t, 3> &shape, Input packed, std::optional<Input> bias, Ref x,
                std::optional<Ref> residual, Ref out, int activation) {
    const Conv2d conv = to_conv(geometry);
    const auto [n, h, w] = shape;
    for (const int64_t size : shape) at_least(size, 1);
    const int64_t lanes = conv.layout == Layout::chwn8 ? 8 : conv.layout == Layout::chwn16 ? 16 : 1;
    if (n % lanes) throw std::invalid_argument("the images do not fill the lanes of the layout");
    const int64_t out_floats = product({n, conv.out_channels, conv2d_out_height(conv, h), conv2d_out_width(conv, w)});
    if (out_floats == 0) throw std::invalid_argument("the kernel is larger than the padded image");
    expect(static_cast<int64_t>(packed.size()), conv2d_packed_size(conv), "the weights are not packed for this convolution");
    if (bias) expect(static_cast<int64_t>(bias->size()), conv.out_channels, "bias is not one float for each output channel");
    ConvStep step{conv, n, h, w, packed.data(), bias ? bias->data() : nullptr, read(x, product({n, conv.in_channels, h, w})),
                  residual ? read(*residual, out_floats) : kNowhere, write(out, out_floats), to_activation(activation)};
    kept_.push_back(std::move(packed));
    if (bias) kept_.push_back(std::move(*bias));
    steps_.push_back(step);
  }

  void add_pool(const ImageNumbers &from, const std::array<int64_t, 12> &window, bool average, bool count_padding,
                int64_t divisor, bool adaptive, Ref x, Ref out) {
    const Image image = to_image(from);
    const auto &w = window;  // out height, width, kernel h w, stride h w, dilation h w, pad top bottom left right
    for (int i = 0; i < 8; ++i) at_least(w[i], 1);
    for (int i = 8; i < 12; ++i) at_least(w[i], 0);
    at_least(divisor, 0);
    if (!adaptive) {
      // Every window must hold at least one input: no maximum of nothing, no division by zero.
      covered(w[0], w[2], w[4], w[6], w[8], image.height);
      covered(w[1], w[3], w[5], w[7], w[10], image.width);
    }
    steps_.push_back(PoolStep{image, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[10], w[9], w[11],
                              average ? Pool::average : Pool::max, count_padding, divisor, adaptive, read(x, floats(image)),
                              write(out, product({image.num_images, image.channels, w[0], w[1]}))});
  }

  void add_mean(const ImageNumbers &from, Ref x, Ref out) {
    const Image image = to_image(from);
    at_least(product({image.height, image.width}), 1);
    steps_.push_back(MeanStep{image, read(x, floats(image)), write(out, product({image.num_images, image.channels}))});
  }

  void add_pointwise(const ImageNumbers &shape, bool spread, bool multiply, int activation, Ref a, Ref b, Ref out) {
    const Image image = to_image(shape);
    const int64_t other = spread ? product({image.num_images, image.channels}) : floats(image);
    steps_.push_back(PointwiseStep{image, spread, multiply ? Pointwise::multiply : Pointwise::add, to_activation(activation),
                                   read(a, floats(image)), read(b, other), write(out, floats(image))});
  }

  void add_activation(int64_t count, int activation, Ref x, Ref out) {
    at_least(count, 0);
    steps_.push_back(ActivationStep{count, to_activation(activation), read(x, count), write(out, count)});
  }

  void add_softmax(int64_t rows, int64_t columns, Ref x, Ref out) {
    at_least(rows, 0);
    at_least(columns, 1);
    steps_.push_back(SoftmaxStep{rows, columns, read(x, product({rows, columns})), write(out, product({rows, columns}))});
  }

  void add_move(const ImageNumbers &from, int target, Ref x, Ref out) {
    const Image image = to_image(from);
    if (target < 0 || target > 2) throw std::invalid_argument("no such layout in a segment");
    steps_.push_back(MoveStep{image, static_cast<Layout>(target), read(x, floats(image)), write(out, floats(image))});
  }

  int64_t workspace(int num_threads) const {
    at_least(num_threads, 1);
    return prepared(num_threads)->workspace();
  }

  // Seconds of each step, when timed.
  std::vector<double> run(const std::vector<Input> &inputs, const Output &arena, const Bytes &workspace, int num_threads,
                          bool timed) const {
    std::vector<const float *> pointers;
    if (inputs.size() != input_floats_.size()) throw std::invalid_argument("not as many inputs as the segment has");
    for (size_t i = 0; i < inputs.size(); ++i) {
      expect(static_cast<int64_t>(inputs[i].size()), input_floats_[i], "an input does not have the size of its shape");
      pointers.push_back(inputs[i].data());
    }
    if (static_cast<int64_t>(arena.size()) * 4 < arena_bytes_) throw std::invalid_argument("the arena is too small");
    at_least(num_threads, 1);
    const std::shared_ptr<const PreparedSegment> prepared = this->prepared(num_threads);
    if (static_cast<int64_t>(workspace.size()) < prepared->workspace())
      throw std::invalid_argument("the workspace is too small");
    // An empty array may begin anywhere.
    if ((arena.size() && reinterpret_cast<uintptr_t>(arena.data()) % 64) ||
        (workspace.size() && reinterpret_cast<uintptr_t>(workspace.data()) % 64))
      throw std::invalid_argument("the arena or the workspace is not aligned");
    std::vector<double> seconds(timed ? steps_.size() : 0);
    bool done;
    {
      nb::gil_scoped_release unlocked;
      done = prepared->run(pointers.data(), arena.data(), workspace.data(), timed ? seconds.data() : nullptr);
    }
    if (!done) throw std::runtime_error("no instruction set is in use");
    return seconds;
  }

  int64_t num_steps() const { return static_cast<int64_t>(steps_.size()); }

 private:
  // The steps prepared for a number of threads; kept, because mostly the next run asks for the same. The GIL is held here, and
  // a run that goes on without it has its own hold of what it runs.
  std::shared_ptr<const PreparedSegment> prepared(int num_threads) const {
    if (!prepared_ || prepared_for_ != std::pair(num_steps(), num_threads)) {
      prepared_ = std::make_shared<const PreparedSegment>(steps_, num_threads);
      prepared_for_ = {num_steps(), num_threads};
    }
    return prepared_;
  }

  static void at_least(int64_t value, int64_t least) {
    if (value < least) throw std::invalid_argument("a size is too small");
  }
  static void covered(int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before, int64_t size) {
    // The first window must reach the first input and the last window must begin before the end.
    const int64_t last = (out - 1) * stride - before;
    if (before > (kernel - 1) * dilation || last >= size) throw std::invalid_argument("a window lies in padding alone");
    if (dilation > 1 && (before || last + (kernel - 1) * dilation >= size))
      for (int64_t i = 0; i < out; ++i) {
        bool any = false;
        for (int64_t k = 0; k < kernel && !any; ++k) {
          const int64_t at = i * stride - before + k * dilation;
          any = at >= 0 && at < size;
        }
        if (!any) throw std::invalid_argument("a window lies in padding alone");
      }
  }
  static Activation to_activation(int activation) {
    if (activation < 0 || activation > 3) throw std::invalid_argument("no such activation");
    return static_cast<Activation>(activation);
  }
  static Image to_image(const ImageNumbers &n) {
    if (n[0] < 0 || n[0] > 2) throw std::invalid_argument("no such layout in a segment");
    for (int i = 1; i < 5; ++i) at_least(n[i], i == 1 ? 0 : 1);
    return {static_cast<Layout>(n[0]), n[1], n[2], n[3], n[4]};
  }
  static int64_t floats(const Image &image) {
    return product({image.num_images, image.channels, image.height, image.width});
  }

  Place read(const Ref &ref, int64_t count) const {
    if (!ref.first) return write(ref, count);
    if (ref.second < 0 || ref.second >= static_cast<int64_t>(input_floats_.size()))
      throw std::invalid_argument("a step reads an input that the segment does not have");
    expect(input_floats_[ref.second], count, "a step reads an input of another size");
    return {true, ref.second};
  }
  Place write(const Ref &ref, int64_t count) const {
    if (ref.first) throw std::invalid_argument("a step writes into an input");
    if (ref.second < 0 || ref.second % 4 || ref.second > arena_bytes_ || count < 0 || count > (arena_bytes_ - ref.second) / 4)
      throw std::invalid_argument("a step reads or writes outside the arena");
    return {false, ref.second};
  }

  std::vector<Step> steps_;
  mutable std::shared_ptr<const PreparedSegment> prepared_;
  mutable std::pair<int64_t, int> prepared_for_;  // how many steps, for how many threads
  std::vector<Input> kept_;
  std::vector<int64_t> input_floats_;
  int64_t arena_bytes_;
};

void bind_segment(nb::module_ &m) {
  nb::class_<BoundSegment>(m, "Segment")
      .def(nb::init<std::vector<int64_t>, int64_t>(), nb::arg("input_floats"), nb::arg("arena_bytes"))
      .def("add_conv", &BoundSegment::add_conv, nb::arg("geometry"), nb::arg("shape"), nb::arg("packed").noconvert(),
           nb::arg("bias").noconvert().none(), nb::arg("x"), nb::arg("residual").none(), nb::arg("out"), nb::arg("activation"))
      .def("add_pool", &BoundSegment::add_pool, nb::arg("image"), nb::arg("window"), nb::arg("average"),
           nb::arg("count_padding"), nb::arg("divisor"), nb::arg("adaptive"), nb::arg("x"), nb::arg("out"))
      .def("add_mean", &BoundSegment::add_mean, nb::arg("image"), nb::arg("x"), nb::arg("out"))
      .def("add_pointwise", &BoundSegment::add_pointwise, nb::arg("image"), nb::arg("spread"), nb::arg("multiply"),
           nb::arg("activation"), nb::arg("a"), nb::arg("b"), nb::arg("out"))
      .def("add_activation", &BoundSegment::add_activation, nb::arg("count"), nb::arg("activation"), nb::arg("x"), nb::arg("out"))
      .def("add_softmax", &BoundSegment::add_softmax, nb::arg("rows"), nb::arg("columns"), nb::arg("x"), nb::arg("out"))
      .def("add_move", &BoundSegment::add_move, nb::arg("image"), nb::arg("target"), nb::arg("x"), nb::arg("out"))
      .def("workspace", &BoundSegment::workspace, nb::arg("num_threads"))
      .def("num_steps", &BoundSegment::num_steps)
      .def("run", &BoundSegment::run, nb::arg("inputs").noconvert(), nb::arg("arena").noconvert(),
           nb::arg("workspace").noconvert(), nb::arg("num_threads"), nb::arg("timed"));
}

}  // namespace tensure
