/* Loops of a training step on a processor, in fp32 arithmetic on fp32 or bf16 tensors.

     attend   attention within each text of a row of concatenated texts

   Results depend on the numbers and the processor's vectors only: neither on how many threads
   there are nor on the other runs of a pack.

   Source: Dao et al., "FlashAttention", 2022 (the backward pass computes the weights again). */

#include "vectors.h"

/* ---- small products --------------------------------------------------------------------- */

#if defined(__AVX512F__)
enum { ROWS = 8 };
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX__)
enum { ROWS = 6 };
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
enum { ROWS = 6 };
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (integers){__VA_ARGS__})
#endif

/* A matrix in memory: entry (i, j) is at[i * by_row + j * by_column]. */
struct matrix {
  const float *at;
  int64_t by_row, by_column;
};

INLINED void product_tile(float *restrict c, int64_t width, struct matrix a, const float *b,
                          int64_t b_width, int64_t depth, int rows, int pieces, int add) {
  vector sum[ROWS][2] = {0};
  for (int64_t k = 0; k < depth; k++) {
    const vector *right = (const vector *)(b + k * b_width);
    const float *left = a.at + k * a.by_column;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      sum[r][0] += left[r * a.by_row] * right[0];
      if (pieces == 2) sum[r][1] += left[r * a.by_row] * right[1];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
    vector *out = (vector *)(c + r * width);
    for (int piece = 0; piece < pieces; piece++) {
      if (add) sum[r][piece] += out[piece];
      out[piece] = sum[r][piece];
    }
  }
}

/* c = a b, or c += a b. c is (rows, columns) and b (depth, columns), row after row of `width` and
   `b_width` entries; columns is a multiple of LANES. */
static void product(float *c, int64_t width, struct matrix a, const float *b, int64_t b_width,
                    int64_t rows, int64_t columns, int64_t depth, int add) {
  for (int64_t column = 0; column < columns; column += 2 * LANES) {
    int pieces = column + LANES < columns ? 2 : 1;
    for (int64_t row = 0; row < rows; row += ROWS) {
      struct matrix part = {a.at + row * a.by_row, a.by_row, a.by_column};
      float *out = c + row * width + column;
#define TILE(r)                                                                          \
  case r:                                                                                \
    if (pieces == 2)                                                                     \
      product_tile(out, width, part, b + column, b_width, depth, r, 2, add);             \
    else                                                                                 \
      product_tile(out, width, part, b + column, b_width, depth, r, 1, add);             \
    break
      switch (least(rows - row, ROWS)) {
        TILE(1);
        TILE(2);
        TILE(3);
        TILE(4);
        TILE(5);
        TILE(6);
#if defined(__AVX512F__)
        TILE(7);
        TILE(8);
#endif
      }
#undef TILE
    }
  }
}

/* out = in', which is (rows, columns); both counts are multiples of LANES. */
static void transpose(float *restrict out, const float *in, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; row += LANES)
    for (int64_t column = 0; column < columns; column += LANES) {
      vector x[LANES], y[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) x[i] = *(const vector *)(in + (row + i) * columns + column);
      /* Each pass is a perfect shuffle of all entries; log2(LANES) of them transpose. */
#pragma GCC unroll 4
      for (int pass = 1; pass < LANES; pass *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
          y[2 * i] = SHUFFLED(x[i], x[i + LANES / 2], LOW);
          y[2 * i + 1] = SHUFFLED(x[i], x[i + LANES / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = y[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) *(vector *)(out + (column + i) * rows + row) = x[i];
    }
}

/* ---- attention -------------------------------------------------------------------------- */

/* Queries at a time: their scores stay in the first caches. */
enum { BLOCK = 64 };

/* Mirrors `_Attention` of training/kernels.py: all entries have 8 bytes. q, k and v have strides by
   run, head and token; out and the gradients are (runs, tokens, heads, features), contiguous. */
struct attention {
  const void *q, *k, *v;
  int64_t q_by[3], k_by[3], v_by[3];
  void *out;
  const void *out_gradient;
  void *q_gradient, *k_gradient, *v_gradient;
  int64_t type, runs, heads, key_heads, features, texts;
  const int64_t *lengths;
  int64_t tokens, longest;
  int64_t one_query, causal; /* one query for each text; no token sees a later one */
  const uint8_t *mask;       /* (keys, queries) of the longest text, or NULL */
  double scaling;
};

/* One text of one run, and memory for it: rows of a multiple of LANES entries. Scores and weights
   have a row for each key, so that all that is done to a query is done to a vector of queries. */
struct text {
  const struct attention *of;
  int64_t run, number, first, length, padded, features; /* features rounded up */
  float *k, *v, *k_gradient, *v_gradient;               /* (padded, features) */
  float *q, *o;                                         /* (BLOCK, features) */
  float *q_turned, *o_turned;                           /* (features, BLOCK) */
  float *weights, *w_gradient;                          /* (padded, BLOCK) */
};

static int64_t floats_of(const struct attention *a) {
  int64_t padded = round_up(a->longest), features = round_up(a->features);
  return 4 * (padded * features + BLOCK * features) + 2 * BLOCK * padded;
}

static void lay_out(struct text *t, float *memory) {
  float **of_text[] = {&t->k, &t->v, &t->k_gradient, &t->v_gradient};
  float **of_block[] = {&t->q, &t->o, &t->q_turned, &t->o_turned};
  for (int i = 0; i < 4; i++, memory += t->padded * t->features) *of_text[i] = memory;
  for (int i = 0; i < 4; i++, memory += BLOCK * t->features) *of_block[i] = memory;
  t->weights = memory;
  t->w_gradient = memory + BLOCK * t->padded;
}

/* Some queries of a text. */
struct block {
  int64_t from, rows, width, seen; /* width: rows rounded up; seen: keys that any of them sees */
  float inverse[BLOCK];
};

/* Loads rows of one head, and prefetches those of the next. */
INLINED void load_rows(float *rows, const struct text *t, const void *in, int64_t at,
                       int64_t by_token, int64_t count, enum type type, float factor) {
  for (int64_t i = 0; i < count; i++) {
    int64_t start = at + i * by_token;
    load_row(rows + i * t->features, in, start, type, t->of->features, factor);
    __builtin_prefetch((const char *)in + (start + t->of->features) * (type == FP32 ? 4 : 2));
  }
}

/* The place of a query in a contiguous (runs, tokens, heads, features). */
INLINED int64_t place(const struct text *t, int64_t head, int64_t query) {
  const struct attention *a = t->of;
  int64_t token = a->one_query ? t->run * a->texts + t->number : t->run * a->tokens + t->first;
  return ((token + query) * a->heads + head) * a->features;
}

/* exp(score - largest score of the query), in place, and 1 / their sum; 0 if it sees nothing. */
INLINED void soften(const struct text *t, struct block *b) {
  const struct attention *a = t->of;
  for (int64_t j = 0; j < b->seen && (a->causal || a->mask); j++)
    for (int64_t i = 0; i < b->rows; i++)
      if ((a->causal && j > b->from + i) || (a->mask && !a->mask[j * a->longest + b->from + i]))
        t->weights[j * b->width + i] = -INFINITY;
  for (int64_t i = 0; i < b->width; i += LANES) {
    vector *scores = (vector *)(t->weights + i), highest = scores[0], sum = {0}, zero = {0};
    int64_t step = b->width / LANES;
    for (int64_t j = 1; j < b->seen; j++)
      highest = choose(scores[j * step] > highest, scores[j * step], highest);
    highest = choose(highest == -INFINITY, zero, highest);
    for (int64_t j = 0; j < b->seen; j++)
      sum += scores[j * step] = exponential(scores[j * step] - highest);
    *(vector *)(b->inverse + i) = choose(sum == 0.0f, zero, 1.0f / sum);
  }
}

/* Attention weights of a block of queries, before they are divided by their sum. */
INLINED struct block weigh(struct text *t, int64_t head, int64_t from, enum type type) {
  const struct attention *a = t->of;
  int64_t queries = a->one_query ? 1 : t->length, first = a->one_query ? t->number : t->first;
  struct block b = {.from = from, .rows = least(queries - from, BLOCK)};
  b.width = round_up(b.rows);
  b.seen = a->causal ? from + b.rows : t->length;
  int64_t at = t->run * a->q_by[0] + head * a->q_by[1] + (first + from) * a->q_by[2];
  load_rows(t->q, t, a->q, at, a->q_by[2], b.rows, type, (float)a->scaling);
  transpose(t->q_turned, t->q, b.width, t->features);
  product(t->weights, b.width, (struct matrix){t->k, t->features, 1}, t->q_turned, b.width, b.seen,
          b.width, a->features, 0);
  soften(t, &b);
  return b;
}

INLINED void load_keys(struct text *t, int64_t head, enum type type) {
  const struct attention *a = t->of;
  int64_t k_at = t->run * a->k_by[0] + head * a->k_by[1] + t->first * a->k_by[2];
  int64_t v_at = t->run * a->v_by[0] + head * a->v_by[1] + t->first * a->v_by[2];
  load_rows(t->k, t, a->k, k_at, a->k_by[2], t->length, type, 1.0f);
  load_rows(t->v, t, a->v, v_at, a->v_by[2], t->length, type, 1.0f);
}

INLINED void attend_text(struct text *t, int64_t key_head, enum type type) {
  const struct attention *a = t->of;
  int64_t group = a->heads / a->key_heads, queries = a->one_query ? 1 : t->length;
  load_keys(t, key_head, type);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
    for (int64_t from = 0; from < queries; from += BLOCK) {
      struct block b = weigh(t, head, from, type);
      product(t->o, t->features, (struct matrix){t->weights, 1, b.width}, t->v, t->features, b.rows,
              t->features, b.seen, 0);
      for (int64_t i = 0; i < b.rows; i++)
        store_row(a->out, place(t, head, from + i), type, a->features, t->o + i * t->features,
                  b.inverse[i]);
    }
}

/* Divides the weights by their sum, and turns their gradients into those of the scores. */
INLINED void differentiate(struct text *t, const struct block *b) {
  int64_t step = b->width / LANES;
  for (int64_t i = 0; i < b->width; i += LANES) {
    vector *weights = (vector *)(t->weights + i), *gradients = (vector *)(t->w_gradient + i);
    vector mean = {0};
    for (int64_t j = 0; j < b->seen; j++) {
      weights[j * step] *= *(const vector *)(b->inverse + i);
      mean += weights[j * step] * gradients[j * step];
    }
    for (int64_t j = 0; j < b->seen; j++)
      gradients[j * step] = (gradients[j * step] - mean) * weights[j * step];
  }
}

INLINED void attend_block_backward(struct text *t, int64_t head, int64_t from, enum type type) {
  const struct attention *a = t->of;
  int64_t features = t->features;
  struct block b = weigh(t, head, from, type);
  load_rows(t->o, t, a->out_gradient, place(t, head, from), a->heads * a->features, b.rows, type,
            1.0f);
  transpose(t->o_turned, t->o, b.width, features);
  product(t->w_gradient, b.width, (struct matrix){t->v, features, 1}, t->o_turned, b.width, b.seen,
          b.width, a->features, 0);
  differentiate(t, &b);
  product(t->v_gradient, features, (struct matrix){t->weights, b.width, 1}, t->o, features, b.seen,
          features, b.rows, 1);
  product(t->k_gradient, features, (struct matrix){t->w_gradient, b.width, 1}, t->q, features,
          b.seen, features, b.rows, 1);
  product(t->o, features, (struct matrix){t->w_gradient, 1, b.width}, t->k, features, b.rows,
          features, b.seen, 0);
  for (int64_t i = 0; i < b.rows; i++)
    store_row(a->q_gradient, place(t, head, from + i), type, a->features, t->o + i * features,
              (float)a->scaling);
}

INLINED void attend_text_backward(struct text *t, int64_t key_head, enum type type) {
  const struct attention *a = t->of;
  int64_t group = a->heads / a->key_heads, queries = a->one_query ? 1 : t->length;
  load_keys(t, key_head, type);
  memset(t->k_gradient, 0, t->length * t->features * sizeof(float));
  memset(t->v_gradient, 0, t->length * t->features * sizeof(float));
  for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
    for (int64_t from = 0; from < queries; from += BLOCK)
      attend_block_backward(t, head, from, type);
  for (int64_t i = 0; i < t->length; i++) {
    int64_t at = ((t->run * a->tokens + t->first + i) * a->key_heads + key_head) * a->features;
    store_row(a->k_gradient, at, type, a->features, t->k_gradient + i * t->features, 1.0f);
    store_row(a->v_gradient, at, type, a->features, t->v_gradient + i * t->features, 1.0f);
  }
}

struct attending {
  const struct attention *of;
  int backward;
  _Atomic int64_t next;
  _Atomic int failed;
};

/* Takes texts until none is left. */
static void attend_texts(void *work, __attribute__((unused)) int64_t thread) {
  struct attending *w = work;
  const struct attention *a = w->of;
  /* Zeros, because entries that only fill up a vector must be finite. */
  float *memory = calloc(floats_of(a), sizeof(float));
  if (!memory) w->failed = 1;
  int64_t number;
  while (memory && (number = atomic_fetch_add(&w->next, 1)) < a->runs * a->texts) {
    struct text t = {.of = a, .run = number / a->texts, .number = number % a->texts};
    for (int64_t i = 0; i < t.number; i++) t.first += a->lengths[i];
    t.length = a->lengths[t.number];
    t.padded = round_up(t.length);
    t.features = round_up(a->features);
    lay_out(&t, memory);
    for (int64_t head = 0; head < a->key_heads; head++) {
      if (a->type == FP32)
        w->backward ? attend_text_backward(&t, head, FP32) : attend_text(&t, head, FP32);
      else
        w->backward ? attend_text_backward(&t, head, BF16) : attend_text(&t, head, BF16);
    }
  }
  free(memory);
}

/* The forward or the backward pass. Gives 1 where memory is short, else 0. */
int attend(const struct attention *a, int backward, int threads) {
  struct attending work = {a, backward, 0, 0};
  in_parallel(attend_texts, &work, threads, threads);
  return work.failed;
}
