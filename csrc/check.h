// Errors that reach Python as RuntimeError with a message for its reader: no file, no line.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace mmdet_ddetr {

// "[2, 300, 8]": prints a tensor's shape.
struct Shape {
  const torch::stable::Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) out << (i ? ", " : "") << shape.tensor.size(i);
  return out << ']';
}

// The same of sizes that are not those of a tensor.
struct Numbers {
  const std::initializer_list<int64_t>& list;
};

inline std::ostream& operator<<(std::ostream& out, const Numbers& numbers) {
  const char* before = "[";
  for (int64_t number : numbers.list) {
    out << before << number;
    before = ", ";
  }
  return out << ']';
}

template <typename... Parts>
inline void check(bool ok, const Parts&... message) {
  if (ok) return;
  std::ostringstream text;
  ((text << message), ...);
  throw std::runtime_error(text.str());
}

}  // namespace mmdet_ddetr
