/* LayerNorm and RMSNorm of a sum x + residual, and their gradients, in fp32 arithmetic.

   A row is read once, and the result is written in fp32 and in bf16. Numbers depend neither on the
   other rows nor on the number of threads.

   Sources: Ba et al., "Layer normalization", 2016; Zhang and Sennrich, "Root mean square layer
   normalization", 2019. */

#include "vectors.h"

/* Rows of a task; the gradients of weight and bias are summed within one. */
enum { NORM_ROWS = 32 };

/* Mirrors `_Norm` of training/norms.py. All is (rows, width), contiguous, and fp32 but for x, its
   gradient and what is in bf16. A pointer may be NULL where it says so. */
struct norm {
  const void *x;
  const float *residual, *weight, *bias;      /* residual and bias: or NULL */
  float *sum, *out;                           /* sum: x itself without a residual */
  uint16_t *rounded;                          /* out in bf16, or NULL */
  const float *out_gradient, *added_gradient; /* added: of the sum by other ways; or NULL */
  const uint16_t *rounded_gradient;           /* or NULL */
  float *sum_gradient;                        /* NULL in the forward pass */
  void *x_gradient;                           /* sum_gradient in the type of x, or NULL */
  float *weight_gradient;                     /* (tasks, 2, width): of weight and bias, or NULL */
  int64_t type, rows, width, centred;         /* type of x; LayerNorm is centred */
  double epsilon;
};

INLINED vector at(const float *row, int64_t i) { return *(const vector *)(row + i); }

/* A row's mean, or 0 in RMSNorm, and 1 / its standard deviation, or root mean square. */
struct moments {
  float mean, inverse;
};

/* Mean of x - shift or of its square; four sums, because each addition waits for the last. */
INLINED float mean_of(const float *x, int64_t width, float shift, int squared) {
  vector sums[4] = {0};
  for (int64_t i = 0; i < width; i += 4 * LANES)
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
      if (i + k * LANES < width) {
        vector y = at(x, i + k * LANES) - shift;
        if (squared) y *= y;
        sums[k] += y;
      }
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) / width;
}

INLINED struct moments moments_of(const struct norm *n, const float *row) {
  float mean = n->centred ? mean_of(row, n->width, 0.0f, 0) : 0.0f;
  float square = mean_of(row, n->width, mean, 1);
  return (struct moments){mean, 1.0f / sqrtf(square + (float)n->epsilon)};
}

INLINED void norm_row(const struct norm *n, int64_t row, enum type type) {
  int64_t first = row * n->width;
  float *sum = n->sum + first;
  if (n->residual)
    for (int64_t i = 0; i < n->width; i += LANES)
      *(vector *)(sum + i) = load(n->x, first + i, type) + at(n->residual, first + i);
  struct moments m = moments_of(n, sum);
  for (int64_t i = 0; i < n->width; i += LANES) {
    vector y = (at(sum, i) - m.mean) * m.inverse * at(n->weight, i);
    if (n->bias) y += at(n->bias, i);
    *(vector *)(n->out + first + i) = y;
    if (n->rounded) store(n->rounded, first + i, BF16, y);
  }
}

INLINED void norm_row_backward(const struct norm *n, int64_t row, float *of_weight,
                               enum type type) {
  int64_t first = row * n->width;
  const float *sum = n->sum + first;
  float *result = n->sum_gradient + first;
  struct moments m = moments_of(n, sum);
  vector sums = {0}, products = {0};
  for (int64_t i = 0; i < n->width; i += LANES) {
    vector gradient = {0}, x = (at(sum, i) - m.mean) * m.inverse;
    if (n->out_gradient) gradient += at(n->out_gradient, first + i);
    if (n->rounded_gradient) gradient += load(n->rounded_gradient, first + i, BF16);
    if (of_weight) {
      *(vector *)(of_weight + i) += gradient * x;
      *(vector *)(of_weight + n->width + i) += gradient;
    }
    gradient *= at(n->weight, i);
    *(vector *)(result + i) = gradient;
    sums += gradient;
    products += gradient * x;
  }
  float mean = n->centred ? sum_of(sums) / n->width : 0.0f, along = sum_of(products) / n->width;
  for (int64_t i = 0; i < n->width; i += LANES) {
    vector x = (at(sum, i) - m.mean) * m.inverse;
    vector gradient = (at(result, i) - mean - x * along) * m.inverse;
    if (n->added_gradient) gradient += at(n->added_gradient, first + i);
    *(vector *)(result + i) = gradient;
    if (n->x_gradient) store(n->x_gradient, first + i, type, gradient);
  }
}

static void norm_rows(void *work, int64_t number) {
  const struct norm *n = work;
  int64_t end = least((number + 1) * NORM_ROWS, n->rows);
  float *of_weight = n->weight_gradient ? n->weight_gradient + number * 2 * n->width : NULL;
  if (of_weight) memset(of_weight, 0, 2 * n->width * sizeof(float));
  for (int64_t row = number * NORM_ROWS; row < end; row++) {
    if (n->sum_gradient)
      n->type == FP32 ? norm_row_backward(n, row, of_weight, FP32)
                      : norm_row_backward(n, row, of_weight, BF16);
    else
      n->type == FP32 ? norm_row(n, row, FP32) : norm_row(n, row, BF16);
  }
}

/* The forward pass, or with sum_gradient the backward pass. */
void norm(const struct norm *n, int threads) {
  in_parallel(norm_rows, (void *)n, (n->rows + NORM_ROWS - 1) / NORM_ROWS, threads);
}

/* Widths must be multiples of it. */
int lanes(void) { return LANES; }
