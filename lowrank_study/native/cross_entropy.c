/* Cross-entropy of rows of logits, and its gradient.

     loss = log(sum of exp(x)) - x[target]       gradient = softmax(x) - [column = target]

   Logits are fp32 or bf16, and the arithmetic is fp32. */

#include "vectors.h"

/* Vectors at a time: the processor computes them at once where each operation waits for another. */
enum { PIECES = 4, STEP = PIECES * LANES, BLOCK = 16 * STEP, ROWS = 4 };
#define EACH_PIECE _Pragma("GCC unroll 4") for (int k = 0; k < PIECES; k++)

struct cross_entropy {
  const void *logits;     /* (rows, columns) */
  const int64_t *targets; /* (rows) */
  float *losses;          /* (rows) */
  void *gradient;         /* (rows, columns), or NULL */
  int64_t rows, columns, type;
};

/* One entry of a row, of which fewer than a step are left. */
INLINED float entry(const void *row, int64_t i, enum type type) {
  return load_some(row, i, type, 1)[0];
}

/* Most exact near 0, from which most of a sum comes. */
INLINED vector exponential(vector x, enum type type) { return power_of_two(x * 1.44269504f, type); }

INLINED float largest(const void *row, int64_t columns, enum type type) {
  vector most[PIECES];
  int64_t i = 0;
  float found = -INFINITY;
  EACH_PIECE most[k] = (vector){0} - INFINITY;
  for (; i + STEP <= columns; i += STEP)
    EACH_PIECE most[k] = larger(load(row, i + k * LANES, type), most[k]);
  EACH_PIECE for (int lane = 0; lane < LANES; lane++) found = fmaxf(found, most[k][lane]);
  for (; i < columns; i++) found = fmaxf(found, entry(row, i, type));
  return found;
}

/* The sum of exp(x - most). In fp32 throughout, a large term would swallow the many small ones. */
INLINED float sum_exponentials(const void *row, int64_t columns, float most, enum type type) {
  double sum = 0.0;
  int64_t i = 0;
  while (i + STEP <= columns) {
    const int64_t end = least(i + BLOCK, columns);
    vector sums[PIECES] = {0};
    for (; i + STEP <= end; i += STEP)
      EACH_PIECE sums[k] += exponential(load(row, i + k * LANES, type) - most, FP32);
    sum += sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  for (; i < columns; i++) sum += expf(entry(row, i, type) - most);
  return (float)sum;
}

/* out = factor * exp(x - most). */
INLINED void write_softmax(const void *row, void *out, int64_t columns, float most, float factor,
                           enum type type) {
  int64_t i = 0;
  for (; i + STEP <= columns; i += STEP)
    EACH_PIECE {
      const int64_t at = i + k * LANES;
      store(out, at, type, factor * exponential(load(row, at, type) - most, type));
    }
  for (; i < columns; i += LANES) {
    const int64_t left = columns - i;
    vector x = load_up_to(row, i, type, left) - most;
    store_up_to(out, i, type, factor * exponential(x, type), left);
  }
}

INLINED void compute_row(const struct cross_entropy *c, int64_t number, enum type type) {
  const int64_t columns = c->columns, target = c->targets[number];
  const int64_t first = number * columns * (type == FP32 ? 4 : 2);
  const char *row = (const char *)c->logits + first;
  const float of_target = entry(row, target, type), most = largest(row, columns, type);
  const float sum = sum_exponentials(row, columns, most, type);
  c->losses[number] = (most - of_target) + logf(sum);
  if (!c->gradient) return;
  char *gradient = (char *)c->gradient + first;
  write_softmax(row, gradient, columns, most, 1.0f / sum, type);
  const vector of_target_alone = {expf(of_target - most) / sum - 1.0f};
  store_some(gradient, target, type, of_target_alone, 1);
}

static void compute_rows(void *work, int64_t number) {
  const struct cross_entropy *c = work;
  const int64_t end = least((number + 1) * ROWS, c->rows);
  for (int64_t row = number * ROWS; row < end; row++)
    c->type == FP32 ? compute_row(c, row, FP32) : compute_row(c, row, BF16);
}

void cross_entropy(const struct cross_entropy *c, int threads) {
  in_parallel(compute_rows, (void *)c, (c->rows + ROWS - 1) / ROWS, threads);
}
