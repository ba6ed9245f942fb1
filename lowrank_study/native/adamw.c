/* AdamW in fp32, in one pass over memory: gradients are scaled, moments and weights updated.

   Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. */

#include "vectors.h"

/* Mirrors `_Update` of training/adamw.py. All tensors are (rows, width), contiguous. */
struct update {
  float *weight, *moment, *square; /* running means of the gradient and of its square */
  const float *gradient;
  const uint8_t *seen; /* rows that have had a gradient; NULL for all */
  int64_t rows, width;
  double scale, kept, beta1, beta2; /* gradients times scale, weights times kept */
  double step, correction, epsilon; /* weight -= step * moment / (sqrt(square) * correction + epsilon) */
};

/* Entries or rows of a task. */
enum { CHUNK = 1 << 14, ROWS = 64 };

INLINED void update_entries(const struct update *u, int64_t from, int64_t to) {
  const float scale = u->scale, kept = u->kept, beta1 = u->beta1, beta2 = u->beta2;
  const float new1 = 1.0 - u->beta1, new2 = 1.0 - u->beta2;
  const float step = u->step, correction = u->correction, epsilon = u->epsilon;
  float *restrict weight = u->weight, *restrict moment = u->moment, *restrict square = u->square;
  const float *restrict gradient = u->gradient;
  for (int64_t i = from; i < to; i++) {
    float g = gradient[i] * scale;
    moment[i] = moment[i] * beta1 + g * new1;
    square[i] = square[i] * beta2 + g * g * new2;
    weight[i] = weight[i] * kept - step * moment[i] / (sqrtf(square[i]) * correction + epsilon);
  }
}

static void update_chunk(void *work, int64_t number) {
  const struct update *u = work;
  int64_t count = u->rows * u->width, from = number * CHUNK;
  update_entries(u, from, least(from + CHUNK, count));
}

/* Without a gradient so far both moments are 0, and the weights only decay. */
static void update_rows(void *work, int64_t number) {
  const struct update *u = work;
  int64_t end = least((number + 1) * ROWS, u->rows);
  for (int64_t row = number * ROWS; row < end; row++) {
    float *restrict weight = u->weight + row * u->width;
    if (u->seen[row])
      update_entries(u, row * u->width, (row + 1) * u->width);
    else if (u->kept != 1.0)
      for (int64_t i = 0; i < u->width; i++) weight[i] *= (float)u->kept;
  }
}

void update(const struct update *u, int threads) {
  if (u->seen)
    in_parallel(update_rows, (void *)u, (u->rows + ROWS - 1) / ROWS, threads);
  else
    in_parallel(update_chunk, (void *)u, (u->rows * u->width + CHUNK - 1) / CHUNK, threads);
}
