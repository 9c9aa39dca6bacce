// Runs of steps over one arena. Every step is compared with plain loops over what the arena holds as its input, so that
// the bound is that of one step; between two values of the arena lie guards.
#include <algorithm>

#include "check/check.h"
#include "check/image.h"
#include "segment/segment.h"

namespace tensure::check {
namespace {

struct Value {
  Place place;
  Layout layout;
  Shape shape;
  int64_t count() const { return shape.n * shape.c * shape.h * shape.w; }
};

// Places one after the other with a gap between: each value stays to be read after the run.
class Arena {
 public:
  Value reserve(Layout layout, const Shape &shape) {
    const Value value{{false, 4 * floats_}, layout, shape};
    floats_ += value.count();
    begins_.push_back(value.place.at / 4);
    ends_.push_back(floats_);
    floats_ += 16;
    return value;
  }
  int64_t floats() const { return floats_; }
  void expect_gaps(const Guarded<float> &arena) const {
    for (size_t i = 0; i < ends_.size(); ++i)
      for (int64_t at = ends_[i]; at < (i + 1 < begins_.size() ? begins_[i + 1] : floats_); ++at)
        if (!std::isnan(arena[at])) fail("segment: a step wrote behind value %zu", i);
  }

 private:
  int64_t floats_ = 16;
  std::vector<int64_t> begins_, ends_;
};

std::vector<float> plain(const Value &value, const float *inputs, const Guarded<float> &arena) {
  const float *at = value.place.input ? inputs : arena.data() + value.place.at / 4;
  std::vector<float> found(value.count());
  for_each_element(value.layout, value.shape, [&](int64_t i, int64_t k) { found[i] = at[k]; });
  return found;
}

// Whether every window along one dim holds an input.
bool covers(int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before, int64_t size) {
  for (int64_t i = 0; i < out; ++i) {
    bool any = false;
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t at = i * stride - before + k * dilation;
      any = any || (at >= 0 && at < size);
    }
    if (!any) return false;
  }
  return out >= 1;
}

PoolStep draw_pool(Random &random, const Value &from) {
  const Image image{from.layout, from.shape.n, from.shape.c, from.shape.h, from.shape.w};
  for (;;) {
    PoolStep p{};
    p.from = image;
    p.kind = random.chance(2) ? Pool::max : Pool::average;
    p.adaptive = random.chance(4);
    p.count_padding = random.chance(2);
    p.divisor = random.chance(4) ? random.pick(1, 9) : 0;
    p.kernel_h = random.pick(1, 4), p.kernel_w = random.pick(1, 4);
    p.stride_h = random.pick(1, 3), p.stride_w = random.pick(1, 3);
    p.dilation_h = random.pick(1, 2), p.dilation_w = random.pick(1, 2);
    p.pad_top = random.pick(0, 2), p.pad_bottom = random.pick(0, 2);
    p.pad_left = random.pick(0, 2), p.pad_right = random.pick(0, 2);
    if (p.adaptive) {
      p.out_height = random.pick(1, image.height + 2), p.out_width = random.pick(1, image.width + 2);
      p.divisor = 0;
      return p;
    }
    // With rounding up, the last window may begin in the last row and end behind the padding.
    const int64_t up = random.pick(0, 1);
    const int64_t rows = image.height + p.pad_top + p.pad_bottom - (p.kernel_h - 1) * p.dilation_h - 1 + up * (p.stride_h - 1);
    const int64_t columns = image.width + p.pad_left + p.pad_right - (p.kernel_w - 1) * p.dilation_w - 1 + up * (p.stride_w - 1);
    if (rows < 0 || columns < 0) continue;
    p.out_height = rows / p.stride_h + 1, p.out_width = columns / p.stride_w + 1;
    if (covers(p.out_height, p.kernel_h, p.stride_h, p.dilation_h, p.pad_top, image.height) &&
        covers(p.out_width, p.kernel_w, p.stride_w, p.dilation_w, p.pad_left, image.width))
      return p;
  }
}

void close(const char *what, const std::vector<float> &found, size_t i, double wanted, double allowed) {
  if (!(std::abs(found[i] - wanted) <= allowed))
    fail("segment, %s: element %zu is %.9g, wanted %.9g within %.3g", what, i, found[i], wanted, allowed);
}

// The taps of a window along one dim: the valid ones, and how many lie in the input or its padding.
struct Taps {
  std::vector<int64_t> at;
  int64_t counted = 0;
};
Taps taps(int64_t i, int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before, int64_t after,
          bool adaptive) {
  Taps found;
  if (adaptive) {
    for (int64_t at = i * size / out; at * out < (i + 1) * size; ++at) found.at.push_back(at);
    found.counted = static_cast<int64_t>(found.at.size());
    return found;
  }
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t at = i * stride - before + k * dilation;
    if (at >= 0 && at < size) found.at.push_back(at);
    if (at < size + after) ++found.counted;
  }
  return found;
}

void compare_pool(const PoolStep &p, const Shape &in, const std::vector<float> &x, const std::vector<float> &found) {
  size_t i = 0;
  for (int64_t plane = 0; plane < in.n * in.c; ++plane)
    for (int64_t m = 0; m < p.out_height; ++m)
      for (int64_t l = 0; l < p.out_width; ++l, ++i) {
        const Taps down = taps(m, in.h, p.out_height, p.kernel_h, p.stride_h, p.dilation_h, p.pad_top, p.pad_bottom, p.adaptive);
        const Taps across = taps(l, in.w, p.out_width, p.kernel_w, p.stride_w, p.dilation_w, p.pad_left, p.pad_right, p.adaptive);
        double most = -INFINITY, sum = 0, magnitude = 0;
        for (const int64_t y : down.at)
          for (const int64_t at : across.at) {
            const double value = x[(plane * in.h + y) * in.w + at];
            most = std::max(most, value);
            sum += value;
            magnitude += std::abs(value);
          }
        if (p.kind == Pool::max) {
          close("max pool", found, i, most, 0);
          continue;
        }
        const int64_t inside = static_cast<int64_t>(down.at.size() * across.at.size());
        const int64_t counted = p.count_padding ? down.counted * across.counted : inside;
        const double divisor = static_cast<double>(p.divisor ? p.divisor : counted);
        close("average pool", found, i, sum / divisor, (down.at.size() + across.at.size() + 1) * 0x1p-24 * magnitude / divisor);
      }
}

Image image_of(const Value &value) { return {value.layout, value.shape.n, value.shape.c, value.shape.h, value.shape.w}; }

void compare_conv(const char *what, const ConvStep &step, const Value &in, const Value &out, const std::vector<float> &x,
                  const std::vector<float> &w, const std::vector<float> &residual, const std::vector<float> &found) {
  const Exact exact = plain_conv(step.conv, in.shape, out.shape, x.data(), w.data());
  const int64_t terms = step.conv.in_channels * step.conv.kernel_h * step.conv.kernel_w + 3, pixels = out.shape.h * out.shape.w;
  for (size_t i = 0; i < found.size(); ++i) {
    const double bias = step.bias ? step.bias[i / pixels % out.shape.c] : 0, added = residual.empty() ? 0 : residual[i];
    const double bound = sum_error(terms) * (exact.magnitude[i] + std::abs(bias) + std::abs(added));
    const double wanted = activated(exact.value[i] + bias + added, step.activation);
    close(what, found, i, wanted, step.activation == Activation::silu ? silu_error(bound, wanted) : bound);
  }
}

void compare_pointwise(const PointwiseStep &step, const std::vector<float> &a, const std::vector<float> &b, int64_t pixels,
                       const std::vector<float> &found) {
  for (size_t i = 0; i < found.size(); ++i) {
    const float right = b[step.spread ? i / pixels : i], sum = step.kind == Pointwise::add ? a[i] + right : a[i] * right;
    const double wanted = activated(sum, step.activation);
    close("pointwise", found, i, wanted, step.activation == Activation::silu ? silu_error(0, wanted) : 0);
  }
}

void compare_softmax(int64_t columns, const std::vector<float> &x, const std::vector<float> &found) {
  for (size_t row = 0; row < x.size(); row += columns) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < columns; ++i) most = std::max<double>(most, x[row + i]);
    for (int64_t i = 0; i < columns; ++i) sum += std::exp(x[row + i] - most);
    for (int64_t i = 0; i < columns; ++i) {
      const double away = most - x[row + i], wanted = std::exp(-away) / sum;
      // Below e^-87 the exponential ends, at 1.6e-38.
      close("softmax", found, row + i, wanted, wanted * (6e-7 + (away + columns) * 0x1p-24) + 2e-38);
    }
  }
}

}  // namespace

int64_t check_segments(int rounds, Plant plant) {
  static constexpr Activation activations[] = {Activation::none, Activation::relu, Activation::relu6, Activation::silu};
  static constexpr Layout layouts[] = {Layout::nchw, Layout::nhwc, Layout::chwn};
  Random random(13);
  int64_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    // Large ones now and then, so that steps share their work between threads.
    const bool large = round % 8 == 7;
    Shape in{random.pick(1, 4), random.pick(1, 19), random.pick(3, 9), random.pick(3, 12)};
    if (large) in = {in.n, 20, 29, 31};
    Arena places;
    const Value x{{true, 0}, random.choose(layouts), in};
    const Value moved = places.reserve(random.choose(layouts), in);
    const int64_t kernel = large ? 1 : random.pick(1, 3);
    Conv2d conv{in.c, random.pick(1, 21), 1, kernel, kernel, 1, 1, 1, 1, 0, kernel / 2, kernel / 2, 0,
                moved.layout, ConvAlgorithm::direct, kAllSwitches};
    if (random.chance(3)) conv.algorithm = ConvAlgorithm::im2win;
    const Shape out{in.n, conv.out_channels, conv2d_out_height(conv, in.h), conv2d_out_width(conv, in.w)};
    const Value y = places.reserve(moved.layout, out);
    const Value active = places.reserve(y.layout, y.shape), both = places.reserve(y.layout, y.shape);
    const Value mean = places.reserve(y.layout, {in.n, y.shape.c, 1, 1}), scaled = places.reserve(y.layout, y.shape);
    PoolStep pool = draw_pool(random, y);
    const Value pooled = places.reserve(y.layout, {in.n, y.shape.c, pool.out_height, pool.out_width});
    const Value soft = places.reserve(Layout::nchw, {1, 1, 1, y.count()}), last = places.reserve(y.layout, y.shape);
    const Conv2d square{out.c, out.c, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, y.layout, ConvAlgorithm::direct, kAllSwitches};

    const auto draw = [&](int64_t count) {
      std::vector<float> numbers(count);
      for (float &number : numbers) number = random.number(false);
      return numbers;
    };
    const std::vector<float> w = draw(conv.out_channels * in.c * kernel * kernel), bias = draw(conv.out_channels);
    const std::vector<float> w_square = draw(square.out_channels * square.in_channels);
    Guarded<float> packed(conv2d_packed_size(conv), 0), packed_square(conv2d_packed_size(square), 0);
    conv2d_pack(conv, w.data(), packed.data());
    conv2d_pack(square, w_square.data(), packed_square.data());
    Guarded<float> input(x.count(), random.pick(0, 15));
    for (int64_t i = 0; i < input.count(); ++i) input[i] = random.number(false);

    pool.x = y.place, pool.out = pooled.place;
    const int64_t columns = y.shape.w * (random.chance(2) ? 1 : y.shape.h);
    const auto any = [&] { return random.choose(activations); };
    const auto either = [&] { return random.chance(2) ? Pointwise::add : Pointwise::multiply; };
    const MoveStep move{image_of(x), moved.layout, x.place, moved.place};
    const ConvStep first{conv, in.n, in.h, in.w, packed.data(), bias.data(), moved.place, kNowhere, y.place, any()};
    const ActivationStep activation{y.count(), any(), y.place, active.place};
    const PointwiseStep add{image_of(y), false, either(), any(), y.place, active.place, both.place};
    const MeanStep average{image_of(y), y.place, mean.place};
    const PointwiseStep scale{image_of(y), true, either(), any(), y.place, mean.place, scaled.place};
    const SoftmaxStep softmax{y.count() / columns, columns, y.place, soft.place};
    const ConvStep again{square, in.n, out.h, out.w, packed_square.data(), nullptr, scaled.place, both.place, last.place, any()};
    const std::vector<Step> steps{move, first, activation, add, average, scale, pool, softmax, again};

    const float *const inputs[] = {input.data()};
    Guarded<float> arena(places.floats(), 0), arena_of_two(places.floats(), 0);
    for (const int threads : {1, 2}) {
      const PreparedSegment prepared(steps, threads);
      Guarded<char> workspace(prepared.workspace(), 0);
      const Guarded<float> &to = threads == 1 ? arena : arena_of_two;
      if (!prepared.run(inputs, to.data(), workspace.data())) fail("the segment did not run");
      to.expect_guards("arena");
      workspace.expect_guards("workspace of a segment");
      places.expect_gaps(to);
    }
    if (std::memcmp(arena.data(), arena_of_two.data(), 4 * arena.count())) fail("segment: two threads change bits");
    if (plant == Plant::step) arena[y.place.at / 4] += 1;

    const auto read = [&](const Value &value) { return plain(value, input.data(), arena); };
    const std::vector<float> x_read = read(x), moved_read = read(moved), y_read = read(y), active_read = read(active);
    if (x_read != moved_read) fail("segment, move: images differ");
    compare_conv("convolution", first, moved, y, moved_read, w, {}, y_read);
    for (size_t i = 0; i < y_read.size(); ++i) {
      const double wanted = activated(y_read[i], activation.activation);
      close("activation", active_read, i, wanted, activation.activation == Activation::silu ? silu_error(0, wanted) : 0);
    }
    const int64_t pixels = out.h * out.w;
    compare_pointwise(add, y_read, active_read, pixels, read(both));
    const std::vector<float> mean_read = read(mean);
    for (size_t plane = 0; plane < mean_read.size(); ++plane) {
      double sum = 0, magnitude = 0;
      for (int64_t i = 0; i < pixels; ++i) {
        sum += y_read[plane * pixels + i];
        magnitude += std::abs(y_read[plane * pixels + i]);
      }
      close("mean", mean_read, plane, sum / pixels, (y.shape.h + y.shape.w + 1) * 0x1p-24 * magnitude / pixels);
    }
    compare_pointwise(scale, y_read, mean_read, pixels, read(scaled));
    compare_pool(pool, y.shape, y_read, read(pooled));
    // Softmax goes over the floats as they lie in the arena.
    const float *flat = arena.data() + y.place.at / 4;
    compare_softmax(columns, {flat, flat + y.count()}, read(soft));
    compare_conv("convolution with residual", again, scaled, last, read(scaled), w_square, read(both), read(last));
    compared += static_cast<int64_t>(steps.size());
  }
  return compared;
}

}  // namespace tensure::check
