#include "conv/view.h"

namespace tensure {
namespace {

// memcpy's call costs more than the few floats of a small cell.
inline void copy_cell(const float *from, float *to, int64_t cell) {
  if (cell > 16) {
    std::memcpy(to, from, sizeof(float) * cell);
    return;
  }
  for (int64_t i = 0; i < cell; ++i) to[i] = from[i];
}

inline void zero(float *to, int64_t count) { std::memset(to, 0, sizeof(float) * count); }

}  // namespace

void stage(const Planes &from, const float *x, int64_t height, int64_t width, int64_t row, int64_t rows, int64_t column,
           int64_t columns, const Strides &to, int64_t cell, float *out) {
  const int64_t left = std::clamp<int64_t>(-column, 0, columns);
  const int64_t right = std::clamp<int64_t>(column + columns - width, 0, columns - left);
  const int64_t inside = columns - left - right;
  const bool one_run = to.column == cell && from.at.column == cell;
  for (int64_t plane = 0; plane < from.num_planes; ++plane)
    for (int64_t i = 0; i < rows; ++i) {
      float *line = out + plane * to.channel + i * to.row;
      const int64_t y = row + i;
      if (y < 0 || y >= height) {
        zero(line, columns * to.column);
        continue;
      }
      const float *source = x + plane * from.at.channel + y * from.at.row + (column + left) * from.at.column;
      zero(line, left * to.column);
      if (one_run)
        std::memcpy(line + left * cell, source, sizeof(float) * inside * cell);
      else
        for (int64_t k = 0; k < inside; ++k)
          copy_cell(source + k * from.at.column, line + (left + k) * to.column, cell);
      zero(line + (left + inside) * to.column, right * to.column);
    }
}

void im2win_rows(const Conv2d &conv, const Planes &from, const float *x, int64_t height, int64_t width, int64_t m,
                 int64_t rows, int64_t column, int64_t columns, const Strides &to, int64_t cell, float *out) {
  const int64_t H = conv.kernel_h;
  for (int64_t plane = 0; plane < from.num_planes; ++plane)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t top = (m + i) * conv.stride_h - conv.pad_top;
      float *line = out + plane * to.channel + i * to.row;
      const float *source = x + plane * from.at.channel;
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t column_in = column + k;
        float *window = line + k * to.column;
        const bool outside = column_in < 0 || column_in >= width;
        for (int64_t u = 0; u < H; ++u, window += to.cell) {
          const int64_t y = top + u * conv.dilation_h;
          if (outside || y < 0 || y >= height)
            zero(window, cell);
          else
            copy_cell(source + y * from.at.row + column_in * from.at.column, window, cell);
        }
      }
    }
}

}  // namespace tensure
