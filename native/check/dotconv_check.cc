// Convolution of bytes, every bit, against plain loops in 64-bit integers.
#include <algorithm>
#include <vector>

#include "check/check.h"
#include "dotconv/dotconv.h"

namespace tensure::check {
namespace {

struct Geometry {
  Conv2d conv;
  int64_t images, height, width;
};

Geometry draw(Random &random) {
  Geometry g{};
  Conv2d &c = g.conv;
  c.groups = random.pick(1, 5);
  const int64_t grouping = random.pick(0, 3);
  if (grouping == 0) {
    c.groups = c.in_channels = c.out_channels = random.pick(2, 40);  // depthwise
  } else {
    if (grouping > 1) c.groups = 1;
    c.in_channels = c.groups * random.pick(1, 19);
    c.out_channels = c.groups * random.pick(1, 70);
  }
  int64_t *const drawn[] = {&c.kernel_h, &c.kernel_w, &c.stride_h, &c.stride_w, &c.dilation_h, &c.dilation_w};
  const int64_t most[] = {3, 4, 2, 3, 2, 2};
  for (int i = 0; i < 6; ++i) *drawn[i] = random.pick(1, most[i]);
  int64_t *const pads[] = {&c.pad_top, &c.pad_bottom, &c.pad_left, &c.pad_right};
  if (random.chance(2))
    for (int64_t *pad : pads) *pad = random.pick(0, 2);
  c.layout = Layout::nhwc;
  c.algorithm = ConvAlgorithm::direct;
  c.switches = kAllSwitches;
  g.images = random.pick(1, 2);
  g.height = random.pick(5, 9);
  g.width = random.pick(8, 13);
  return g;
}

template <typename T> void fill(const Guarded<T> &to, Random &random, int64_t low, int64_t high) {
  for (int64_t i = 0; i < to.count(); ++i) to[i] = static_cast<T>(random.pick(low, high));
}

// As TensorFlow Lite's reference kernels say it, but for a left shift that leaves 32 bits: it saturates.
int64_t requantized(int64_t sum, int64_t multiplier, int shift, int64_t zero_point, int64_t low, int64_t high) {
  const int64_t held = std::clamp<int64_t>(sum << std::max(shift, 0), INT32_MIN, INT32_MAX), product = held * multiplier;
  const int64_t nudged = product + (product >= 0 ? 1 << 30 : 1 - (1 << 30));
  const int64_t doubled = nudged / (int64_t{1} << 31), divisor = int64_t{1} << std::max(-shift, 0);
  const int64_t quotient = (std::abs(doubled) + divisor / 2) / divisor;
  return std::clamp((doubled < 0 ? -quotient : quotient) + zero_point, low, high);
}

}  // namespace

int64_t check_dotconv(int rounds, Plant plant) {
  Random random(13);
  for (int round = 0; round < rounds; ++round) {
    const auto [c, images, height, width] = draw(random);
    const int64_t rows = conv2d_out_height(c, height), columns = conv2d_out_width(c, width);
    const int64_t each_in = c.in_channels / c.groups, each_out = c.out_channels / c.groups;
    const bool is_signed = round & 1;
    Guarded<uint8_t> x(images * height * width * c.in_channels, random.pick(0, 63));
    Guarded<int8_t> w(c.out_channels * each_in * c.kernel_h * c.kernel_w, random.pick(0, 63));
    Guarded<int32_t> bias(c.out_channels, 1), multiplier(c.out_channels, 2), shift(c.out_channels, 3);
    Guarded<float> scale(c.out_channels, 1), float_bias(c.out_channels, 2);
    fill(x, random, 0, 255);
    fill(w, random, -128, 127);
    fill(bias, random, -9999, 9999);
    fill(multiplier, random, 1 << 30, INT32_MAX);
    fill(shift, random, -12, round % 3 == 0 ? 2 : 0);
    fill(scale, random, 1, 99);
    fill(float_bias, random, -99, 99);
    Guarded<uint8_t> packed(dotconv_packed_size(c, false), 0);
    dotconv_pack(c, false, w.data(), packed.data());
    packed.expect_guards("packed bytes");
    if (plant == Plant::byte) w[w.count() / 2] ^= 1;
    DotRun run{};
    run.num_images = images;
    run.height = height;
    run.width = width;
    run.element = is_signed ? DotElement::s8 : DotElement::u8;
    run.output = static_cast<DotOutput>(round % 4);
    run.x = x.data();
    run.packed = packed.data();
    run.bias_ints = run.output == DotOutput::f32 ? nullptr : bias.data();
    run.bias_floats = float_bias.data();
    run.multiplier = multiplier.data();
    run.shift = shift.data();
    run.scale = scale.data();
    run.zero_point = static_cast<int32_t>(is_signed ? random.pick(-128, 127) : random.pick(0, 255));
    run.out_zero_point = 3;
    run.low = run.output == DotOutput::s8 ? -120 : 5;
    run.high = run.output == DotOutput::s8 ? 120 : 250;
    run.num_threads = 1 + round % 2;
    const bool narrow = run.output == DotOutput::s8 || run.output == DotOutput::u8;
    Guarded<uint8_t> out(images * rows * columns * c.out_channels * (narrow ? 1 : 4), 4 * random.pick(0, 15));
    const Workspace need = dotconv_workspace(c, run.element, images, height, width, run.num_threads);
    Guarded<uint8_t> workspace(need.shared + need.per_thread * run.num_threads, 0);
    run.out = out.data();
    run.workspace = workspace.data();
    if (!dotconv(c, run)) fail("dotconv did not run");
    out.expect_guards("convolved bytes");
    workspace.expect_guards("the workspace of bytes");
    x.expect_guards("bytes");
    int64_t at = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t l = 0; l < columns; ++l)
          for (int64_t o = 0; o < c.out_channels; ++o, ++at) {
            int64_t sum = run.bias_ints ? bias[o] : 0;
            for (int64_t u = 0; u < c.kernel_h; ++u)
              for (int64_t v = 0; v < c.kernel_w; ++v) {
                const int64_t y = m * c.stride_h + u * c.dilation_h - c.pad_top;
                const int64_t z = l * c.stride_w + v * c.dilation_w - c.pad_left;
                if (y < 0 || y >= height || z < 0 || z >= width) continue;
                for (int64_t r = 0; r < each_in; ++r) {
                  const uint8_t byte = x[((n * height + y) * width + z) * c.in_channels + o / each_out * each_in + r];
                  const int64_t value = is_signed ? static_cast<int8_t>(byte) : byte;
                  sum += (value - run.zero_point) * w[((o * each_in + r) * c.kernel_h + u) * c.kernel_w + v];
                }
              }
            double found, wanted = static_cast<double>(sum);
            if (narrow) {
              found = run.output == DotOutput::s8 ? static_cast<int8_t>(out[at]) : out[at];
              wanted = static_cast<double>(requantized(sum, multiplier[o], shift[o], run.out_zero_point, run.low, run.high));
            } else if (run.output == DotOutput::f32) {
              float value;
              std::memcpy(&value, out.data() + 4 * at, 4);
              found = value;
              const volatile float product = static_cast<float>(static_cast<int32_t>(sum)) * scale[o];  // rounded on its own
              wanted = product + float_bias[o];
            } else {
              int32_t value;
              std::memcpy(&value, out.data() + 4 * at, 4);
              found = value;
            }
            if (found != wanted)
              fail("bytes, round %d: element %lld is %.9g, wanted %.9g", round, static_cast<long long>(at), found, wanted);
          }
  }
  return rounds;
}

}  // namespace tensure::check
