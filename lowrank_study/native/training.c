/* Loops of a training step on a processor, on fp32 or bf16 tensors.

     attend   attention within each text of a row of concatenated texts

   Sums and functions are computed in fp32. With AVX512-BF16, products of bf16 tensors read bf16, so
   that attention weights and their gradients are rounded to it; elsewhere products read fp32.
   Results depend on the numbers and the processor's vectors only: neither on how many threads
   there are nor on the other runs of a pack.

   A unit has 32 bits: one fp32 number, or two neighbours in bf16. Where a product sums over rows,
   the neighbours are those of two rows.

   Source: Dao et al., "FlashAttention", 2022 (the backward pass computes the weights again). */

#include "vectors.h"

/* Type of the numbers that products of tensors of a type read. */
#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define MULTIPLIED(type) (type)
#else
#define MULTIPLIED(type) FP32
#endif
INLINED int64_t units_of(int64_t numbers, enum type as) {
  return as == FP32 ? numbers : (numbers + 1) / 2;
}

/* Sets the neighbour of the last of an odd number of rows to zeros. */
INLINED void end_rows(float *rows, int64_t count, int64_t by_row) {
  if (count % 2) memset(rows + count * by_row, 0, by_row * sizeof(float));
}

/* ---- small products --------------------------------------------------------------------- */

#if defined(__AVX512F__)
enum { ROWS = 12 };
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

/* A matrix in memory, of units: (i, j) is at[i * by_row + j * by_column]. */
struct matrix {
  const float *at;
  int64_t by_row, by_column;
};

/* sum + a b for a unit of a and a vector of units of b. */
INLINED vector add_product(vector sum, float a, vector b, enum type as) {
#if defined(__AVX512F__) && defined(__AVX512BF16__)
  if (as == BF16)
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
  return sum + a * b;
}

INLINED void product_tile(float *restrict c, int64_t width, struct matrix a, const float *b,
                          int64_t b_width, int64_t depth, int rows, int pieces, int add,
                          enum type as) {
  vector sum[ROWS][2] = {0};
  for (int64_t k = 0; k < depth; k++) {
    const vector *right = (const vector *)(b + k * b_width);
    const float *left = a.at + k * a.by_column;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      sum[r][0] = add_product(sum[r][0], left[r * a.by_row], right[0], as);
      if (pieces == 2) sum[r][1] = add_product(sum[r][1], left[r * a.by_row], right[1], as);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) {
    vector *out = (vector *)(c + r * width);
    for (int piece = 0; piece < pieces; piece++) {
      if (add) sum[r][piece] += out[piece];
      out[piece] = sum[r][piece];
    }
  }
}

/* c = a b, or c += a b. c is fp32 (rows, columns) and b (depth, columns) in units, row after row of
   `width` and `b_width`; columns is a multiple of LANES. */
INLINED void multiply(float *c, int64_t width, struct matrix a, const float *b, int64_t b_width,
                      int64_t rows, int64_t columns, int64_t depth, int add, enum type as) {
  int64_t tiles = (rows + ROWS - 1) / ROWS, step = (rows + tiles - 1) / tiles;
  for (int64_t column = 0; column < columns; column += 2 * LANES) {
    int pieces = column + LANES < columns ? 2 : 1;
    for (int64_t row = 0; row < rows; row += step) {
      struct matrix part = {a.at + row * a.by_row, a.by_row, a.by_column};
      float *out = c + row * width + column;
#define TILE(r)                                                                          \
  case r:                                                                                \
    if (pieces == 2)                                                                     \
      product_tile(out, width, part, b + column, b_width, depth, r, 2, add, as);         \
    else                                                                                 \
      product_tile(out, width, part, b + column, b_width, depth, r, 1, add, as);         \
    break
      switch (least(rows - row, step)) {
        TILE(1);
        TILE(2);
        TILE(3);
        TILE(4);
        TILE(5);
        TILE(6);
#if defined(__AVX512F__)
        TILE(7);
        TILE(8);
        TILE(9);
        TILE(10);
        TILE(11);
        TILE(12);
#endif
      }
#undef TILE
    }
  }
}

static void product(float *c, int64_t width, struct matrix a, const float *b, int64_t b_width,
                    int64_t rows, int64_t columns, int64_t depth, int add, enum type as) {
  if (as == FP32)
    multiply(c, width, a, b, b_width, rows, columns, depth, add, FP32);
  else
    multiply(c, width, a, b, b_width, rows, columns, depth, add, BF16);
}

/* out = in', of units, which is (rows, columns); both counts are multiples of LANES. */
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

#if defined(__AVX512F__) && defined(__AVX512BF16__)
/* Units of the numbers of two rows, of fp32 or bf16, from the k-th number on. */
INLINED vector pair(const float *first, const float *second, int64_t k, enum type type) {
  if (type == BF16) {
    const halves *x = (const halves *)((const uint16_t *)first + k);
    const halves *y = (const halves *)((const uint16_t *)second + k);
    return (vector)(lengthened(*x) | lengthened(*y) << 16);
  }
  const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512 x = _mm512_loadu_ps(first + k), y = _mm512_loadu_ps(second + k);
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh(y, x);
  return (vector)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
}
#else
INLINED vector pair(const float *first, const float *second, int64_t k, enum type type) {
  abort(); /* is not called */
}
#endif

/* Rows of numbers of type `in` as units of two rows, or in fp32 as they are. They are `by_row`
   floats apart, and there is room for one more. */
INLINED const float *paired(float *out, float *rows, int64_t count, int64_t width, int64_t by_row,
                            enum type in, enum type as) {
  if (as == FP32) return rows;
  end_rows(rows, count, by_row);
  for (int64_t i = 0; i < count; i += 2) {
    const float *first = rows + i * by_row, *second = first + by_row;
    for (int64_t k = 0; k < width; k += LANES)
      *(vector *)(out + i / 2 * width + k) = pair(first, second, k, in);
  }
  return out;
}

/* Rounds rows of fp32 to the type that products read, in place. */
INLINED void round_rows(float *rows, int64_t count, int64_t width, enum type as) {
  for (int64_t i = 0; i < count && as == BF16; i++)
    for (int64_t k = 0; k < width; k += LANES)
      store(rows + i * width, k, BF16, load(rows + i * width, k, FP32));
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

/* One text of one run, and memory for it. Rows have a multiple of LANES units. Scores and weights
   have a row for each key, so that all that is done to a query is done to a vector of queries. */
struct text {
  const struct attention *of;
  int64_t run, number, first, length, padded, features; /* features rounded up */
  enum type as;                                         /* type of the numbers in units */
  int64_t units;                                        /* of a row, rounded up */
  float *k, *v;                                         /* (padded, units) */
  float *k_gradient, *v_gradient, *k_paired, *v_paired; /* (padded, features) */
  float *q, *o;                                         /* (BLOCK, units) */
  float *q_turned, *o_turned;                           /* (units, BLOCK) */
  float *q_paired, *o_paired, *result;                  /* (BLOCK, features) */
  float *weights, *w_gradient, *w_paired;               /* (padded, BLOCK) */
};

enum { OF_TEXT = 6, OF_BLOCK = 7, OF_BOTH = 3 };

static int64_t floats_of(const struct attention *a) {
  int64_t padded = round_up(a->longest), features = round_up(a->features);
  return OF_TEXT * padded * features + OF_BLOCK * BLOCK * features + OF_BOTH * BLOCK * padded;
}

static void lay_out(struct text *t, float *memory) {
  float **of_text[OF_TEXT] = {&t->k, &t->v, &t->k_gradient, &t->v_gradient,
                              &t->k_paired, &t->v_paired};
  float **of_block[OF_BLOCK] = {&t->q, &t->o, &t->q_turned, &t->o_turned,
                                &t->q_paired, &t->o_paired, &t->result};
  float **of_both[OF_BOTH] = {&t->weights, &t->w_gradient, &t->w_paired};
  for (int i = 0; i < OF_TEXT; i++, memory += t->padded * t->features) *of_text[i] = memory;
  for (int i = 0; i < OF_BLOCK; i++, memory += BLOCK * t->features) *of_block[i] = memory;
  for (int i = 0; i < OF_BOTH; i++, memory += BLOCK * t->padded) *of_both[i] = memory;
}

/* Some queries of a text. */
struct block {
  int64_t from, rows, width, seen; /* width: rows rounded up; seen: keys that any of them sees */
  float inverse[BLOCK];
};

/* Loads rows of one head, and prefetches those of the next. */
INLINED void load_rows(float *rows, const struct text *t, const void *in, int64_t at,
                       int64_t by_token, int64_t count, enum type type) {
  const int64_t n = t->of->features, units = t->units, size = type == FP32 ? 4 : 2;
  const enum type copied = t->as == BF16 ? FP32 : type; /* units of bf16 are copied as they are */
  const int64_t entries = units_of(n, t->as);
  for (int64_t i = 0; i < count; i++) {
    const char *from = (const char *)in + (at + i * by_token) * size;
    for (int64_t k = 0; k < entries; k += LANES)
      *(vector *)(rows + i * units + k) = load_up_to(from, k, copied, entries - k);
    __builtin_prefetch(from + n * size);
  }
  end_rows(rows, count, units);
}

/* Stores rows of one head in (tokens, heads, features), each multiplied by a factor. */
INLINED void store_rows(void *out, const struct text *t, int64_t at, int64_t heads, int64_t count,
                        const float *rows, const float *factors, int64_t by_factor,
                        enum type type) {
  const int64_t n = t->of->features, width = t->features;
  for (int64_t i = 0; i < count; i++)
    for (int64_t k = 0; k < n; k += LANES) {
      vector x = *(const vector *)(rows + i * width + k) * factors[i * by_factor];
      store_up_to(out, at + i * heads * n + k, type, x, n - k);
    }
}

/* The same rows in units of two rows. */
INLINED const float *pairs_of(const struct text *t, float *out, float *rows, int64_t count) {
  return paired(out, rows, count, t->features, t->units, BF16, t->as);
}

/* The place of a query in a contiguous (runs, tokens, heads, features). */
INLINED int64_t place(const struct text *t, int64_t head, int64_t query) {
  const struct attention *a = t->of;
  int64_t token = a->one_query ? t->run * a->texts + t->number : t->run * a->tokens + t->first;
  return ((token + query) * a->heads + head) * a->features;
}

/* exp(score - largest score of the query), in place, and 1 / their sum; 0 if it sees nothing. */
INLINED void soften(const struct text *t, struct block *b, enum type type) {
  const struct attention *a = t->of;
  const float scaling = (float)(a->scaling * 1.4426950408889634); /* exp(x) = 2^(x / ln 2) */
  for (int64_t j = 0; j < b->seen && (a->causal || a->mask); j++)
    for (int64_t i = 0; i < b->rows; i++)
      if ((a->causal && j > b->from + i) || (a->mask && !a->mask[j * a->longest + b->from + i]))
        t->weights[j * b->width + i] = -INFINITY * scaling;
  for (int64_t i = 0; i < b->width; i += LANES) {
    vector *scores = (vector *)(t->weights + i), sum = {0}, zero = {0};
    vector highest = zero - INFINITY;
    int64_t step = b->width / LANES;
    for (int64_t j = 0; j < b->seen; j++) highest = larger(scores[j * step] * scaling, highest);
    highest = choose(highest == -INFINITY, zero, highest);
    for (int64_t j = 0; j < b->seen; j++)
      sum += scores[j * step] = power_of_two(scores[j * step] * scaling - highest, type);
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
  load_rows(t->q, t, a->q, at, a->q_by[2], b.rows, type);
  transpose(t->q_turned, t->q, b.width, t->units);
  product(t->weights, b.width, (struct matrix){t->k, t->units, 1}, t->q_turned, b.width, b.seen,
          b.width, units_of(a->features, t->as), 0, t->as);
  soften(t, &b, type);
  return b;
}

INLINED void load_keys(struct text *t, int64_t head, enum type type) {
  const struct attention *a = t->of;
  int64_t k_at = t->run * a->k_by[0] + head * a->k_by[1] + t->first * a->k_by[2];
  int64_t v_at = t->run * a->v_by[0] + head * a->v_by[1] + t->first * a->v_by[2];
  load_rows(t->k, t, a->k, k_at, a->k_by[2], t->length, type);
  load_rows(t->v, t, a->v, v_at, a->v_by[2], t->length, type);
}

INLINED void attend_text(struct text *t, int64_t key_head, enum type type) {
  const struct attention *a = t->of;
  int64_t group = a->heads / a->key_heads, queries = a->one_query ? 1 : t->length;
  load_keys(t, key_head, type);
  const float *v = pairs_of(t, t->v_paired, t->v, t->length);
  for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
    for (int64_t from = 0; from < queries; from += BLOCK) {
      struct block b = weigh(t, head, from, type);
      const float *weights = paired(t->w_paired, t->weights, b.seen, b.width, b.width, FP32, t->as);
      product(t->result, t->features, (struct matrix){weights, 1, b.width}, v, t->features, b.rows,
              t->features, units_of(b.seen, t->as), 0, t->as);
      store_rows(a->out, t, place(t, head, from), a->heads, b.rows, t->result, b.inverse, 1, type);
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

INLINED void attend_block_backward(struct text *t, const float *k, int64_t head, int64_t from,
                                   enum type type) {
  const struct attention *a = t->of;
  const int64_t features = t->features;
  const enum type as = t->as;
  struct block b = weigh(t, head, from, type);
  load_rows(t->o, t, a->out_gradient, place(t, head, from), a->heads * a->features, b.rows, type);
  transpose(t->o_turned, t->o, b.width, t->units);
  product(t->w_gradient, b.width, (struct matrix){t->v, t->units, 1}, t->o_turned, b.width, b.seen,
          b.width, units_of(a->features, as), 0, as);
  differentiate(t, &b);
  const float *q = pairs_of(t, t->q_paired, t->q, b.rows);
  const float *o = pairs_of(t, t->o_paired, t->o, b.rows);
  const float *scores = paired(t->w_paired, t->w_gradient, b.seen, b.width, b.width, FP32, as);
  round_rows(t->weights, b.seen, b.width, as);
  product(t->v_gradient, features, (struct matrix){t->weights, b.width, 1}, o, features, b.seen,
          features, units_of(b.rows, as), 1, as);
  product(t->result, features, (struct matrix){scores, 1, b.width}, k, features, b.rows, features,
          units_of(b.seen, as), 0, as);
  round_rows(t->w_gradient, b.seen, b.width, as);
  product(t->k_gradient, features, (struct matrix){t->w_gradient, b.width, 1}, q, features, b.seen,
          features, units_of(b.rows, as), 1, as);
  const float scaling = (float)a->scaling;
  int64_t at = place(t, head, from);
  store_rows(a->q_gradient, t, at, a->heads, b.rows, t->result, &scaling, 0, type);
}

INLINED void attend_text_backward(struct text *t, int64_t key_head, enum type type) {
  const struct attention *a = t->of;
  int64_t group = a->heads / a->key_heads, queries = a->one_query ? 1 : t->length;
  load_keys(t, key_head, type);
  const float *k = pairs_of(t, t->k_paired, t->k, t->length);
  memset(t->k_gradient, 0, t->length * t->features * sizeof(float));
  memset(t->v_gradient, 0, t->length * t->features * sizeof(float));
  for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
    for (int64_t from = 0; from < queries; from += BLOCK)
      attend_block_backward(t, k, head, from, type);
  const float factors[] = {(float)a->scaling, 1.0f};
  int64_t at = ((t->run * a->tokens + t->first) * a->key_heads + key_head) * a->features;
  store_rows(a->k_gradient, t, at, a->key_heads, t->length, t->k_gradient, factors, 0, type);
  store_rows(a->v_gradient, t, at, a->key_heads, t->length, t->v_gradient, factors + 1, 0, type);
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
    t.as = a->features % 2 ? FP32 : MULTIPLIED((enum type)a->type);
    t.units = round_up(units_of(a->features, t.as));
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
