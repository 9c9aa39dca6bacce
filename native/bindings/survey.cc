// Checks what Python hands over, releases the GIL for what takes long, calls the kernel. Computes nothing.
//
// Arrays come through the buffer protocol itself: nanobind's own type for arrays costs as much as a small tensor's survey.
#include "survey/survey.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace nb = nanobind;

namespace tensure {
namespace {

constexpr int64_t kMaxDims = 64;
constexpr int64_t kMaxBytes = int64_t{1} << 62;
constexpr int64_t kQuickBytes = 1 << 16;  // less takes less time than another thread needs to take the GIL
constexpr int64_t kMaxBins = 1 << 20;

// Which element a buffer's format names; bfloat16 has no format and comes as its bits.
Element element_of(const char *format, int64_t item_bytes, bool as_bf16) {
  std::string_view name(format ? format : "B");
  if (!name.empty() && (name[0] == '=' || name[0] == '<' || name[0] == '@')) name.remove_prefix(1);
  const auto whole = [item_bytes](Element e1, Element e2, Element e4, Element e8) {
    return item_bytes == 1 ? e1 : item_bytes == 2 ? e2 : item_bytes == 4 ? e4 : e8;
  };
  if (as_bf16) {
    if (name != "H") throw std::invalid_argument("bfloat16 comes as uint16");
    return Element::bf16;
  }
  if (name == "f") return Element::f32;
  if (name == "d") return Element::f64;
  if (name == "e") return Element::f16;
  if (name == "?") return Element::boolean;
  if (name == "Zf") return Element::c64;
  if (name == "Zd") return Element::c128;
  if (name.size() == 1 && std::strchr("bhilq", name[0])) return whole(Element::i8, Element::i16, Element::i32, Element::i64);
  if (name.size() == 1 && std::strchr("BHILQ", name[0])) return whole(Element::u8, Element::u16, Element::u32, Element::u64);
  throw std::invalid_argument("no dtype that can be surveyed");
}

// Bytes of all elements, or a refusal of what no memory holds.
int64_t checked_bytes(const TensorView &x) {
  if (x.shape.size() > kMaxDims) throw std::invalid_argument("more than 64 dims");
  int64_t bytes = element_bytes(x.element);
  bool empty = false;
  for (const int64_t size : x.shape) {
    if (size < 0) throw std::invalid_argument("a size is negative");
    if (size == 0) empty = true;
    else if (__builtin_mul_overflow(bytes, size, &bytes) || bytes > kMaxBytes) throw std::invalid_argument("too many elements");
  }
  if (!empty && !x.data) throw std::invalid_argument("no address");
  return empty ? 0 : bytes;
}

// A buffer held as long as its view is in use.
class Held {
 public:
  Held(nb::handle object, bool as_bf16) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_RECORDS_RO)) {
      PyErr_Clear();
      throw std::invalid_argument("no array of bytes in memory");
    }
    try {
      view_.element = element_of(buffer_.format, buffer_.itemsize, as_bf16);
      if (element_bytes(view_.element) != buffer_.itemsize) throw std::invalid_argument("items of another size");
      view_.data = static_cast<const uint8_t *>(buffer_.buf);
      view_.shape.assign(buffer_.shape, buffer_.shape + buffer_.ndim);
      view_.strides.assign(buffer_.strides, buffer_.strides + buffer_.ndim);
    } catch (...) {
      PyBuffer_Release(&buffer_);
      throw;
    }
  }
  ~Held() { PyBuffer_Release(&buffer_); }
  Held(const Held &) = delete;
  const TensorView &view() const { return view_; }

 private:
  Py_buffer buffer_;
  TensorView view_;
};

std::vector<int64_t> integers(nb::handle sequence, const char *refusal) {
  if (!PyTuple_Check(sequence.ptr())) throw std::invalid_argument(refusal);
  std::vector<int64_t> found(PyTuple_GET_SIZE(sequence.ptr()));
  for (size_t i = 0; i < found.size(); ++i) {
    found[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sequence.ptr(), i));
    if (found[i] == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      throw std::invalid_argument(refusal);
    }
  }
  return found;
}

TensorView view_at(uint64_t address, int element, nb::handle shape, nb::handle strides) {
  if (element < 0 || element >= kNumElements) throw std::invalid_argument("no such element");
  TensorView view{reinterpret_cast<const uint8_t *>(address), static_cast<Element>(element),
                  integers(shape, "shape is no tuple of integers"), {}};
  checked_bytes(view);  // before products of its sizes
  if (!strides.is_none()) {
    view.strides = integers(strides, "strides is no tuple of integers, and not None");
    if (view.strides.size() != view.shape.size()) throw std::invalid_argument("not one stride for each dim");
    return view;
  }
  view.strides.resize(view.shape.size());
  int64_t stride = element_bytes(view.element);
  for (size_t dim = view.shape.size(); dim-- > 0; stride *= std::max<int64_t>(view.shape[dim], 1)) view.strides[dim] = stride;
  return view;
}

nb::object bytes_of(const Digest &digest) {
  uint8_t bytes[16];
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<uint8_t>(digest.low >> 8 * i);
    bytes[8 + i] = static_cast<uint8_t>(digest.high >> 8 * i);
  }
  return nb::bytes(bytes, sizeof bytes);
}

template <typename F> void unlocked_when_long(int64_t bytes, F f) {
  bool done;
  if (bytes <= kQuickBytes) {
    done = f();
  } else {
    nb::gil_scoped_release unlocked;
    done = f();
  }
  if (!done) throw std::runtime_error("no instruction set is in use");
}

// The fields of tensure.kernels.Survey, in the order in which `call` puts them.
constexpr const char *kFields[] = {"count", "minimum", "maximum", "mean", "std", "l2", "zeros",
                                   "denormals", "nans", "infinities", "first_nonfinite", "over_limit", "first_over", "digest"};

nb::dict call(const TensorView &x, const SurveyOptions &options) {
  const int64_t bytes = checked_bytes(x);
  if (!(options.limit >= 0)) throw std::invalid_argument("limit is negative or no number");
  if (options.num_threads < 1) throw std::invalid_argument("fewer than one thread");
  Survey found;
  unlocked_when_long(bytes, [&] { return survey(x, options, &found); });
  const Statistics &s = found.statistics;
  static PyObject *const *const names = [] {  // for as long as the process: making fourteen strings takes a microsecond
    static PyObject *made[std::size(kFields)];
    for (size_t i = 0; i < std::size(kFields); ++i) made[i] = PyUnicode_InternFromString(kFields[i]);
    return made;
  }();
  nb::dict fields;
  size_t field = 0;
  const auto put = [&](PyObject *owned) {
    const nb::object value = nb::steal(owned);
    if (!value.is_valid() || PyDict_SetItem(fields.ptr(), names[field++], value.ptr())) throw nb::python_error();
  };
  const auto put_none = [&] { put(nb::none().release().ptr()); };
  const auto put_number = [&](bool there, double value) { there ? put(PyFloat_FromDouble(value)) : put_none(); };
  const auto put_count = [&](int64_t value) { put(PyLong_FromLongLong(value)); };
  const auto put_place = [&](int64_t value) { value < 0 ? put_none() : put_count(value); };
  put_count(s.count);
  put_number(s.finite, s.minimum);
  put_number(s.finite, s.maximum);
  put_number(s.finite, s.mean);
  put_number(s.finite, deviation(s));
  put_number(options.statistics, l2(s));
  put_count(s.zeros);
  put_count(s.denormals);
  put_count(s.nans);
  put_count(s.infinities);
  put_place(s.first_nonfinite);
  put_count(s.over_limit);
  put_place(s.first_over);
  put(options.digest ? bytes_of(found.digest).release().ptr() : nb::none().release().ptr());
  return fields;
}

using Counts = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void count(const TensorView &x, double low, double high, const Counts &counts) {
  const int64_t bytes = checked_bytes(x), num_bins = static_cast<int64_t>(counts.shape(0));
  if (num_bins < 1 || num_bins > kMaxBins) throw std::invalid_argument("not 1 to 1048576 bins");
  if (!(low < high) || !std::isfinite(high - low) || !std::isfinite(static_cast<double>(num_bins) / (high - low)))
    throw std::invalid_argument("no range from low to high that can be cut into bins");
  unlocked_when_long(bytes, [&] { return histogram(x, low, high, num_bins, counts.data()); });
}

}  // namespace

void bind_survey(nb::module_ &m) {
  m.def(
      "survey",
      [](nb::handle x, bool as_bf16, bool statistics, bool digest, bool canonical_nan, double limit, int num_threads) {
        const Held held(x, as_bf16);
        return call(held.view(), {statistics, digest, canonical_nan, limit, num_threads});
      },
      nb::arg("x"), nb::arg("as_bf16"), nb::arg("statistics"), nb::arg("digest"), nb::arg("canonical_nan"), nb::arg("limit"),
      nb::arg("num_threads"));
  m.def(
      "survey_at",
      [](uint64_t address, int element, nb::handle shape, nb::handle strides, bool statistics, bool digest, bool canonical_nan,
         double limit, int num_threads) {
        return call(view_at(address, element, shape, strides), {statistics, digest, canonical_nan, limit, num_threads});
      },
      nb::arg("address"), nb::arg("element"), nb::arg("shape"), nb::arg("strides").none(), nb::arg("statistics"),
      nb::arg("digest"), nb::arg("canonical_nan"), nb::arg("limit"), nb::arg("num_threads"));
  m.def(
      "histogram",
      [](nb::handle x, bool as_bf16, double low, double high, Counts counts) {
        const Held held(x, as_bf16);
        count(held.view(), low, high, counts);
      },
      nb::arg("x"), nb::arg("as_bf16"), nb::arg("low"), nb::arg("high"), nb::arg("counts").noconvert());
  m.def(
      "histogram_at",
      [](uint64_t address, int element, nb::handle shape, nb::handle strides, double low, double high, Counts counts) {
        count(view_at(address, element, shape, strides), low, high, counts);
      },
      nb::arg("address"), nb::arg("element"), nb::arg("shape"), nb::arg("strides").none(), nb::arg("low"), nb::arg("high"),
      nb::arg("counts").noconvert());
}

}  // namespace tensure
