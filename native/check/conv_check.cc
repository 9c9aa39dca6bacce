// Convolution in every layout by every algorithm against plain loops, and the two things that only move floats.
#include <algorithm>
#include <optional>
#include <string>

#include "check/check.h"
#include "check/image.h"

namespace tensure::check {
namespace {

// Winograd's own geometries; and deep ones, whose sums and inputs are cut into parts and blocks for the caches.
enum class Kind { any, winograd, deep };
Kind kind_of(int round) { return round % 5 == 4 ? Kind::winograd : round % 10 == 8 ? Kind::deep : Kind::any; }

// Of one geometry, all outputs together.
int64_t most_products(Kind kind) { return kind == Kind::deep ? 4'000'000 : 120'000; }

const char *const kAlgorithmNames[] = {"direct", "im2win", "im2win_full", "im2col", "winograd"};
const char *const kLayoutNames[] = {"NCHW", "NHWC", "CHWN", "CHWN8", "CHWN16"};

struct Geometry {
  Conv2d conv;
  Shape in, out;
};

Geometry draw(Random &random, Kind kind) {
  static constexpr int64_t kernels[][2] = {{3, 3}, {1, 1}, {3, 1}, {1, 3}, {2, 2}, {5, 5},
                                           {1, 7}, {4, 3}, {6, 1}, {7, 7}, {2, 5}};
  static constexpr int64_t strides[][2] = {{1, 1}, {1, 1}, {2, 2}, {1, 2}, {3, 1}, {4, 4}, {2, 3}};
  static constexpr int64_t dilations[][2] = {{1, 1}, {1, 1}, {2, 2}, {1, 3}, {3, 1}};
  static constexpr int64_t channels[] = {1, 3, 4, 8, 16, 17, 19, 32, 33, 5, 64, 67};
  const bool any = kind == Kind::any;
  const int64_t *kernel = kernels[any ? random.pick(0, 10) : 0];
  const int64_t *stride = strides[any ? random.pick(0, 6) : 0];
  const int64_t *dilation = dilations[any ? random.pick(0, 4) : 0];
  int64_t groups = 1, in = random.choose(channels), out = random.choose(channels);
  if (kind == Kind::deep) in = random.pick(257, 521), out = random.pick(33, 80);
  const int64_t grouping = any ? random.pick(0, 4) : 0;
  if (grouping == 3) {
    groups = random.pick(2, 5);
    in = groups * random.pick(1, 9);
    out = groups * random.pick(1, 19);
  } else if (grouping == 4) {
    groups = in;
    out = in * (random.chance(2) ? 1 : random.pick(2, 3));
  }
  int64_t sizes[] = {random.pick(1, 10), random.pick(1, 9), random.chance(3) ? random.pick(10, 40) : random.pick(1, 9)};
  const int64_t products = in / groups * kernel[0] * kernel[1];
  for (;;) {
    int64_t &largest = *std::max_element(sizes, sizes + 3);
    if (largest == 1 || sizes[0] * sizes[1] * sizes[2] * out * products <= most_products(kind)) break;
    largest = (largest + 1) / 2;
  }
  int64_t inputs[2], pads[4];
  for (int i = 0; i < 2; ++i) {
    const int64_t span = dilation[i] * (kernel[i] - 1) + 1;
    const int64_t padded = (sizes[1 + i] - 1) * stride[i] + span + random.pick(0, stride[i] - 1);
    pads[2 * i] = random.pick(0, std::min(span, padded) - 1);
    pads[2 * i + 1] = random.pick(0, std::min(span, padded - pads[2 * i]) - 1);
    inputs[i] = padded - pads[2 * i] - pads[2 * i + 1];
  }
  const Conv2d conv{in, out, groups, kernel[0], kernel[1], stride[0], stride[1], dilation[0], dilation[1], pads[0], pads[1],
                    pads[2], pads[3], Layout::nchw, ConvAlgorithm::direct, kAllSwitches};
  return {conv, {sizes[0], in, inputs[0], inputs[1]}, {sizes[0], out, sizes[1], sizes[2]}};
}

struct Numbers {
  std::vector<float> x, w, bias, residual;  // NCHW
  std::vector<float> planted;               // w as the plain loops see it
};

std::vector<float> draw_numbers(Random &random, int64_t count, bool integers) {
  std::vector<float> numbers(count);
  for (float &value : numbers) value = random.number(integers);
  return numbers;
}

// A layout's copy of NCHW between guards; lanes without an image hold NaN.
void fill(const Guarded<float> &to, Layout layout, const Shape &shape, const std::vector<float> &from) {
  std::fill(to.data(), to.data() + to.count(), NAN);
  for_each_element(layout, shape, [&](int64_t i, int64_t at) { to[at] = from[i]; });
}

struct Way {
  Conv2d conv;
  bool bias, residual, in_place;
  Activation activation;
};

std::string name_of(int round, const Conv2d &c, const Geometry &g) {
  const auto shape = [](const Shape &s) { return std::to_string(s.c) + "x" + std::to_string(s.h) + "x" + std::to_string(s.w); };
  return "geometry " + std::to_string(round) + " (" + kAlgorithmNames[static_cast<int>(c.algorithm)] + " " +
         kLayoutNames[static_cast<int>(c.layout)] + ", switches " + std::to_string(c.switches) + ", " + std::to_string(g.in.n) +
         " images of " + shape(g.in) + " to " + shape(g.out) + ", kernel " + std::to_string(c.kernel_h) + "x" +
         std::to_string(c.kernel_w) + ")";
}

// One run; its results in NCHW.
std::vector<float> run(Random &random, const Way &way, const Geometry &g, const Numbers &numbers, int threads, Plant plant) {
  const Layout layout = way.conv.layout;
  const auto skip = [&] { return random.pick(0, 15); };
  Guarded<float> w(numbers.w.size(), skip()), packed(conv2d_packed_size(way.conv), skip());
  std::copy(numbers.w.begin(), numbers.w.end(), w.data());
  conv2d_pack(way.conv, w.data(), packed.data());
  packed.expect_guards("packed weights");
  Guarded<float> x(size_of(layout, g.in), skip()), out(size_of(layout, g.out), skip());
  fill(x, layout, g.in, numbers.x);
  std::optional<Guarded<float>> bias, residual;
  if (way.bias) std::copy(numbers.bias.begin(), numbers.bias.end(), bias.emplace(numbers.bias.size(), skip()).data());
  if (way.residual) fill(residual.emplace(out.count(), skip()), layout, g.out, numbers.residual);
  if (way.residual && way.in_place) std::copy(residual->data(), residual->data() + out.count(), out.data());
  const float *added = !way.residual ? nullptr : way.in_place ? out.data() : residual->data();
  const Workspace need = conv2d_workspace(way.conv, held(layout, g.in.n), g.in.h, g.in.w, threads);
  Guarded<char> workspace(need.shared + threads * need.per_thread, 0);
  const Conv2dRun call{held(layout, g.in.n), g.in.h, g.in.w, x.data(), packed.data(), way.bias ? bias->data() : nullptr, added,
                       out.data(), way.activation, threads, workspace.data()};
  if (!conv2d(way.conv, call)) fail("conv2d did not run");
  if (plant == Plant::guard) out.damage();
  if (plant == Plant::read) [[maybe_unused]] volatile float beyond = x[x.count()];
  out.expect_guards("out");
  workspace.expect_guards("workspace");
  std::vector<float> result(g.out.n * g.out.c * g.out.h * g.out.w);
  for_each_element(layout, g.out, [&](int64_t i, int64_t at) { result[i] = out[at]; });
  return result;
}

// Within rounding of plain loops; to the last bit when the numbers are integers and the algorithm is strict.
void compare(const char *name, const Way &way, const Geometry &g, const Numbers &numbers, const Exact &exact, bool integers,
             const std::vector<float> &found) {
  const bool strict = way.conv.algorithm != ConvAlgorithm::winograd;
  const int64_t pixels = g.out.h * g.out.w, terms = g.conv.in_channels / g.conv.groups * g.conv.kernel_h * g.conv.kernel_w + 3;
  double largest = 0, magnitude = 0;
  std::vector<double> value(found.size()), bound(found.size());
  for (size_t i = 0; i < found.size(); ++i) {
    value[i] = exact.value[i];
    double sum = exact.magnitude[i];
    const float bias = way.bias ? numbers.bias[i / pixels % g.out.c] : 0, residual = way.residual ? numbers.residual[i] : 0;
    value[i] += static_cast<double>(bias) + residual;
    sum += std::abs(bias) + std::abs(residual);
    bound[i] = integers ? 0 : sum_error(terms) * sum;
    largest = std::max(largest, std::abs(value[i]));
    magnitude = std::max(magnitude, sum);
  }
  for (size_t i = 0; i < found.size(); ++i) {
    if (!strict) bound[i] = std::max(1e-4 * largest, 1e-5 * magnitude);
    const double wanted = activated(value[i], way.activation);
    const double allowed = way.activation == Activation::silu ? silu_error(bound[i], wanted) : bound[i];
    if (!(std::abs(found[i] - wanted) <= allowed))
      fail("%s: output %zu is %.9g, plain loops give %.9g, allowed %.3g", name, i, found[i], wanted, allowed);
  }
}

}  // namespace

int64_t check_conv(int rounds, Plant plant) {
  Random random(20240803);
  int64_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    const bool integers = round % 4 < 2;
    const Geometry g = draw(random, kind_of(round));
    Numbers numbers;
    numbers.x = draw_numbers(random, g.in.n * g.in.c * g.in.h * g.in.w, integers);
    numbers.w = draw_numbers(random, g.out.c * (g.in.c / g.conv.groups) * g.conv.kernel_h * g.conv.kernel_w, integers);
    numbers.bias = draw_numbers(random, g.out.c, integers);
    numbers.residual = draw_numbers(random, g.out.n * g.out.c * g.out.h * g.out.w, integers);
    std::vector<float> w = numbers.w;
    if (plant == Plant::weight) std::rotate(w.begin(), w.begin() + 1, w.begin() + std::min<int64_t>(2, w.size()));
    const Exact exact = plain_conv(g.conv, g.in, g.out, numbers.x.data(), w.data());
    uint64_t hash = 0xcbf29ce484222325u;
    for (int way_index = 0; way_index < 22; ++way_index) {
      // Twenty strict ways, direct NHWC again with some switches off, and Winograd where it applies.
      if (way_index == 21 && kind_of(round) != Kind::winograd) continue;
      const Activation activation = static_cast<Activation>(random.pick(0, integers ? 2 : 3));  // SiLU rounds
      Way way{g.conv, random.chance(2), random.chance(2), random.chance(2), activation};
      way.conv.layout = way_index < 20 ? static_cast<Layout>(way_index % 5) : Layout::nhwc;
      way.conv.algorithm = static_cast<ConvAlgorithm>(way_index < 20 ? way_index / 5 : way_index == 20 ? 0 : 4);
      if (way_index == 20) way.conv.switches = static_cast<unsigned>(random.pick(0, kAllSwitches));
      const bool strict = way.conv.algorithm != ConvAlgorithm::winograd;
      const std::string name = name_of(round, way.conv, g);
      const std::vector<float> found = run(random, way, g, numbers, 1, plant);
      compare(name.c_str(), way, g, numbers, exact, integers && strict, found);
      const std::vector<float> again = run(random, way, g, numbers, 2, plant);
      if (strict && std::memcmp(found.data(), again.data(), found.size() * sizeof(float)))
        fail("%s: two threads change bits", name.c_str());
      compare(name.c_str(), way, g, numbers, exact, integers && strict, again);
      compared += 2;
      if (strict)
        for (const float value : found) digest(hash, value);
    }
    // The same on every instruction set that has fused multiply-add.
    std::printf("geometry %d bits %016llx\n", round, static_cast<unsigned long long>(hash));
  }
  return compared;
}

int64_t check_layouts(int rounds) {
  Random random(7);
  int64_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    const Geometry g = draw(random, Kind::any);
    const std::vector<float> x = draw_numbers(random, g.in.n * g.in.c * g.in.h * g.in.w, false);
    const int threads = static_cast<int>(random.pick(1, 2));
    for (int layout_index = 0; layout_index < 5; ++layout_index) {
      const Layout layout = static_cast<Layout>(layout_index);
      Guarded<float> from(size_of(layout, g.in), random.pick(0, 15));
      fill(from, layout, g.in, x);
      for (int target_index = 0; target_index < 5; ++target_index, ++compared) {
        const Layout target = static_cast<Layout>(target_index);
        Guarded<float> to(size_of(target, g.in), random.pick(0, 15));
        convert_layout(layout, target, g.in.n, g.in.c, g.in.h, g.in.w, from.data(), to.data(), threads);
        to.expect_guards("converted images");
        for_each_element(target, g.in, [&](int64_t i, int64_t at) {
          if (to[at] != x[i])
            fail("%s to %s: element %d is not what it was", kLayoutNames[layout_index], kLayoutNames[target_index],
                 static_cast<int>(i));
        });
        const Shape padded{held(target, g.in.n), g.in.c, g.in.h, g.in.w};
        for_each_element(target, padded, [&](int64_t i, int64_t at) {
          if (i >= static_cast<int64_t>(x.size()) && to[at] != 0) fail("a lane without an image is not 0");
        });
      }
      // im2win: [image][channel][output row][column * kernel height + u], with the layout's order of dims.
      Conv2d conv = g.conv;
      conv.layout = layout;
      conv.algorithm = ConvAlgorithm::im2win;
      const int64_t columns = g.in.w + conv.pad_left + conv.pad_right, H = conv.kernel_h;
      const Shape windows{g.in.n, g.in.c, g.out.h, columns * H};
      Guarded<float> made(im2win_size(conv, held(layout, g.in.n), g.in.h, g.in.w), random.pick(0, 15));
      if (made.count() != size_of(layout, windows)) fail("the im2win tensor has another size than its shape");
      im2win(conv, held(layout, g.in.n), g.in.h, g.in.w, from.data(), made.data(), threads);
      made.expect_guards("im2win tensor");
      for_each_element(layout, windows, [&](int64_t i, int64_t at) {
        const int64_t n = i / (windows.c * windows.h * windows.w), c = i / (windows.h * windows.w) % windows.c;
        const int64_t m = i / windows.w % windows.h, k = i % windows.w / H, u = i % H;
        const int64_t y = m * conv.stride_h + u * conv.dilation_h - conv.pad_top, column = k - conv.pad_left;
        const bool outside = y < 0 || y >= g.in.h || column < 0 || column >= g.in.w;
        const float wanted = outside ? 0 : x[((n * g.in.c + c) * g.in.h + y) * g.in.w + column];
        if (made[at] != wanted) fail("im2win in %s: element %d is wrong", kLayoutNames[layout_index], static_cast<int>(i));
      });
      ++compared;
    }
  }
  return compared;
}

}  // namespace tensure::check
