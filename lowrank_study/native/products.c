/* Matrix products of a training step, on processors with AVX512: y = A B + bias.

   The numbers of A are fp32 or bf16; those of B are fp32 or of A's type, and are rounded to it.
   Sums are fp32. Each runs over the depth in order, so that results depend neither on the number
   of threads nor on the number of rows.

   A unit has 32 bits: one fp32 number, or two neighbours in bf16. The columns of B are copied panel
   by panel, as units in the order in which they are read: a panel is (depth, WIDTH). The sums of a
   tile, ROWS by WIDTH, stay in registers.

   Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008. */

#include <string.h>

#include "threads.h"

enum type { FP32, BF16 };

/* The columns are a multiple of WIDTH. So are the depth, or the rows if a_is_transposed; and the
   depth if b_is_transposed. */
struct product {
  const void *a;    /* (rows, depth); if a_is_transposed, (depth, rows) */
  const void *b;    /* (depth, columns); if b_is_transposed, (columns, depth) */
  const void *bias; /* (columns) of `a_type`, or NULL */
  void *y;          /* (rows, columns) */
  int64_t a_type, b_type, y_type, a_is_transposed, b_is_transposed;
  int64_t rows, columns, depth;
};

#if defined(__AVX512F__)
#include <immintrin.h>

enum { ROWS = 12, LANES = 16, WIDTH = 2 * LANES };
typedef uint32_t unit;
typedef int32_t units __attribute__((vector_size(64), aligned(4), may_alias));

/* A product whose A is in units. */
struct work {
  struct product is;
  const unit *a;
  int64_t a_by_row, a_by_unit, depth; /* in units */
  _Atomic int has_failed;
};

INLINED int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINED int64_t size_of(enum type type) { return type == FP32 ? 4 : 2; }
INLINED const void *entry(const void *of, int64_t i, enum type type) {
  return (const char *)of + i * size_of(type);
}

/* ---- numbers ----------------------------------------------------------------------------- */

/* Sixteen numbers in bf16. */
INLINED __m256i halves(const void *in, enum type type) {
#ifdef __AVX512BF16__
  if (type == FP32) return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(in));
#endif
  return _mm256_loadu_si256(in);
}

/* Sixteen units of neighbouring numbers. */
INLINED units row_of_units(const void *in, enum type type, enum type as) {
#ifdef __AVX512BF16__
  if (type != as) {
    const float *of = in;
    return (units)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(of + LANES), _mm512_loadu_ps(of));
  }
#endif
  return (units)_mm512_loadu_si512(in);
}

/* Sixteen units of numbers and those below them; the second row may be missing. */
INLINED __m512i paired(const void *first, const void *second, enum type type) {
  __m512i above = _mm512_cvtepu16_epi32(halves(first, type));
  if (!second) return above;
  __m512i below = _mm512_cvtepu16_epi32(halves(second, type));
  return _mm512_or_si512(above, _mm512_slli_epi32(below, 16));
}

INLINED __m512 load(const void *in, enum type type) {
  if (type == FP32) return _mm512_loadu_ps(in);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(in, BF16)), 16));
}

INLINED void store(void *out, enum type type, __m512 x) {
  if (type == FP32)
    _mm512_storeu_ps(out, x);
#ifdef __AVX512BF16__
  else
    _mm256_storeu_si256(out, (__m256i)_mm512_cvtneps_pbh(x));
#endif
}

INLINED __m512 multiply_add(unit a, __m512i b, __m512 sum, enum type type) {
  __m512i everywhere = _mm512_set1_epi32((int32_t)a);
#ifdef __AVX512BF16__
  if (type == BF16) return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)everywhere);
#endif
  return _mm512_fmadd_ps(_mm512_castsi512_ps(everywhere), _mm512_castsi512_ps(b), sum);
}

/* ---- panels ------------------------------------------------------------------------------ */

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (units){__VA_ARGS__})
#endif

/* Sixteen rows become sixteen columns: four perfect shuffles. */
INLINED void transpose(units *rows) {
  for (int round = 0; round < 4; round++) {
    units mixed[LANES];
    for (int i = 0; i < LANES / 2; i++) {
      units a = rows[i], b = rows[i + LANES / 2];
      mixed[2 * i] = SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      mixed[2 * i + 1] =
          SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    memcpy(rows, mixed, sizeof mixed);
  }
}

/* The next panel's numbers in B, which are fetched while this one is in use. */
struct next {
  const char *start;
  int64_t by_unit, second_line;
};

INLINED struct next next_after(const struct work *work, int64_t column) {
  const struct product *p = &work->is;
  const int64_t by = size_of(p->b_type) * p->columns, next = column + WIDTH;
  if (next >= p->columns) return (struct next){p->b, 0, 0};
  if (p->b_is_transposed)
    return (struct next){entry(p->b, next * p->depth, p->b_type), 2 * 64, 64};
  const char *start = entry(p->b, next, p->b_type);
  return p->a_type == FP32 ? (struct next){start, by, 64} : (struct next){start, 2 * by, by};
}

INLINED void fill_panel(unit *panel, const struct work *work, int64_t column, enum type a_type,
                        enum type b_type) {
  const struct product *p = &work->is;
  const int64_t in_unit = a_type == FP32 ? 1 : 2;
  if (p->b_is_transposed) {
    for (int64_t k = 0; k < work->depth; k += LANES)
      for (int64_t half = 0; half < WIDTH; half += LANES) {
        units rows[LANES];
        for (int64_t i = 0; i < LANES; i++) {
          const int64_t at = (column + half + i) * p->depth + k * in_unit;
          rows[i] = row_of_units(entry(p->b, at, b_type), b_type, a_type);
        }
        transpose(rows);
        for (int64_t i = 0; i < LANES; i++) *(units *)(panel + (k + i) * WIDTH + half) = rows[i];
      }
    return;
  }
  for (int64_t k = 0; k < work->depth; k++)
    for (int64_t half = 0; half < WIDTH; half += LANES) {
      const int64_t at = k * in_unit * p->columns + column + half;
      const void *first = entry(p->b, at, b_type), *second = NULL;
      if (in_unit * k + 1 < p->depth) second = entry(p->b, at + p->columns, b_type);
      unit *out = panel + k * WIDTH + half;
      *(units *)out = a_type == FP32 ? row_of_units(first, FP32, FP32)
                                     : (units)paired(first, second, b_type);
    }
}

/* ---- tiles ------------------------------------------------------------------------------- */

/* Sums stay in registers only if all loops over them are unrolled. */
#define UNROLLED _Pragma("GCC unroll 12")

INLINED void tile(const struct work *work, const unit *panel, int64_t row, int64_t column,
                  const int rows, const int fetches_next, enum type a_type, enum type y_type) {
  const struct product *p = &work->is;
  const struct next next = next_after(work, column);
  const int64_t by_row = work->a_by_row, by_unit = work->a_by_unit;
  const unit *a = work->a + row * by_row;
  __m512 sums[ROWS][2];
  UNROLLED for (int half = 0; half < 2; half++) {
    const void *bias = entry(p->bias, column + half * LANES, a_type);
    __m512 start = p->bias ? load(bias, a_type) : _mm512_setzero_ps();
    UNROLLED for (int i = 0; i < rows; i++) sums[i][half] = start;
  }
  for (int64_t k = 0; k < work->depth; k++) {
    __m512i left = _mm512_load_si512(panel + k * WIDTH);
    __m512i right = _mm512_load_si512(panel + k * WIDTH + LANES);
    if (fetches_next) {
      _mm_prefetch(next.start + k * next.by_unit, _MM_HINT_T1);
      _mm_prefetch(next.start + k * next.by_unit + next.second_line, _MM_HINT_T1);
    }
    UNROLLED for (int i = 0; i < rows; i++) {
      unit each = a[i * by_row + k * by_unit];
      sums[i][0] = multiply_add(each, left, sums[i][0], a_type);
      sums[i][1] = multiply_add(each, right, sums[i][1], a_type);
    }
  }
  UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int half = 0; half < 2; half++) {
    const int64_t at = (row + i) * p->columns + column + half * LANES;
    store((char *)p->y + at * size_of(y_type), y_type, sums[i][half]);
  }
}

INLINED void tiles(const struct work *work, const unit *panel, int64_t column, enum type a_type,
                   enum type y_type) {
  const int64_t rows = work->is.rows;
  int64_t row = 0;
  if (rows < ROWS) {
    for (; row < rows; row++) tile(work, panel, row, column, 1, 0, a_type, y_type);
    return;
  }
  tile(work, panel, 0, column, ROWS, 1, a_type, y_type);
  for (row = ROWS; row < rows; row += ROWS) /* the last tile may compute some rows again */
    tile(work, panel, least(row, rows - ROWS), column, ROWS, 0, a_type, y_type);
}

static void multiply_panel(void *argument, int64_t number) {
  struct work *work = argument;
  const enum type a_type = work->is.a_type, b_type = work->is.b_type, y_type = work->is.y_type;
  const int64_t column = number * WIDTH;
  unit *panel = aligned_alloc(64, work->depth * WIDTH * sizeof *panel);
  if (!panel) {
    work->has_failed = 1;
    return;
  }
  if (a_type == FP32) {
    fill_panel(panel, work, column, FP32, FP32);
    tiles(work, panel, column, FP32, FP32);
  } else {
    if (b_type == FP32)
      fill_panel(panel, work, column, BF16, FP32);
    else
      fill_panel(panel, work, column, BF16, BF16);
    if (y_type == FP32)
      tiles(work, panel, column, BF16, FP32);
    else
      tiles(work, panel, column, BF16, BF16);
  }
  free(panel);
}

/* Returns the units of a transposed A in bf16, (units, rows), or NULL if there is no memory. */
static unit *paired_rows(const struct product *p, int64_t depth) {
  unit *pairs = aligned_alloc(64, depth * p->rows * sizeof *pairs);
  for (int64_t k = 0; pairs && k < depth; k++)
    for (int64_t row = 0; row < p->rows; row += LANES) {
      const uint16_t *first = (const uint16_t *)p->a + 2 * k * p->rows + row;
      const uint16_t *second = 2 * k + 1 < p->depth ? first + p->rows : NULL;
      _mm512_store_si512(pairs + k * p->rows + row, paired(first, second, BF16));
    }
  return pairs;
}

/* Returns 0, or -1 if there is no memory. */
int multiply(const struct product *product, int threads) {
  const int64_t depth = product->a_type == FP32 ? product->depth : (product->depth + 1) / 2;
  struct work work = {*product, product->a, depth, 1, depth, 0};
  unit *pairs = NULL;
  if (product->a_is_transposed) {
    work.a_by_row = 1;
    work.a_by_unit = product->rows;
    if (product->a_type == BF16 && !(work.a = pairs = paired_rows(product, depth))) return -1;
  }
  in_parallel(multiply_panel, &work, product->columns / WIDTH, threads);
  free(pairs);
  return -work.has_failed;
}

/* Whether the compiled code multiplies numbers of a type. */
#ifdef __AVX512BF16__
int multiplies(int64_t type) { return type == FP32 || type == BF16; }
#else
int multiplies(int64_t type) { return type == FP32; }
#endif
#else
int multiplies(int64_t type) { return type != type; }
#endif
