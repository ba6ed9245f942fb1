/* Matrix products of a training step, on processors with AVX512: y = A B + bias, or y += A B.

   The numbers of A are fp32 or bf16; those of B are fp32 or of A's type, and are rounded to it.
   Sums are fp32. Each runs over the depth in order, block by block, so that results depend neither
   on the number of threads nor on the number of rows. The sums of the blocks are added: one sum
   over the words of a vocabulary would lose three of seven digits.

   A unit has 32 bits: one fp32 number, or two neighbours in bf16. The columns of B are copied panel
   by panel, as units in the order in which they are read: a panel is (depth, WIDTH). The sums of a
   tile, ROWS by WIDTH, stay in registers.

   Source: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008. */

#include <string.h>

#include "threads.h"

enum type { FP32, BF16 };

/* The same product for each run, of the next matrices. In bf16, the depth is even if A is not
   transposed; if B is transposed, the depth is a multiple of 32. */
struct product {
  const void *a;    /* (rows, depth); if a_is_transposed, (depth, rows) */
  const void *b;    /* (depth, columns); if b_is_transposed, (columns, depth) */
  const void *bias; /* (columns) of `a_type`, or NULL */
  void *y;          /* (rows, columns) */
  int64_t a_type, b_type, y_type, a_is_transposed, b_is_transposed, adds;
  int64_t runs, rows, columns, depth;
};

#if defined(__AVX512F__)
#include <immintrin.h>

enum { ROWS = 12, LANES = 16, WIDTH = 2 * LANES, BLOCK = 512 };
typedef uint32_t unit;
typedef int32_t units __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(64), aligned(2), may_alias));

/* Products whose A is in units. */
struct work {
  struct product is;
  const unit *a;
  int64_t a_by_run, a_by_row, a_by_unit, depth; /* in units */
  _Atomic int has_failed;
};

INLINED int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINED int64_t panels_of(const struct product *p) { return (p->columns + WIDTH - 1) / WIDTH; }
INLINED int64_t size_of(enum type type) { return type == FP32 ? 4 : 2; }
INLINED const void *entry(const void *of, int64_t i, enum type type) {
  return (const char *)of + i * size_of(type);
}

/* ---- numbers ----------------------------------------------------------------------------- */

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (__typeof__(a)){__VA_ARGS__})
#endif

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

/* WIDTH units of numbers in bf16 and those below them. */
INLINED void pair(unit *out, const void *row, const void *below, enum type type) {
  const halves a = (halves)row_of_units(row, type, BF16);
  const halves b = below ? (halves)row_of_units(below, type, BF16) : (halves){0};
  *(halves *)out = SHUFFLED(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9,
                            41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
  *(halves *)(out + LANES) =
      SHUFFLED(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57,
               26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}

INLINED __m512 load(const void *in, enum type type) {
  if (type == FP32) return _mm512_loadu_ps(in);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(in)), 16));
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

INLINED void fill_panel(unit *panel, const struct work *work, const void *b, int64_t column,
                        enum type a_type, enum type b_type) {
  const struct product *p = &work->is;
  const int64_t in_unit = a_type == FP32 ? 1 : 2;
  if (!p->b_is_transposed) {
    for (int64_t k = 0; k < work->depth; k++, panel += WIDTH) {
      const void *row = entry(b, k * in_unit * p->columns + column, b_type);
      const void *below = 2 * k + 1 < p->depth ? entry(row, p->columns, b_type) : NULL;
      if (a_type == FP32)
        memcpy(panel, row, WIDTH * sizeof *panel);
      else
        pair(panel, row, below, b_type);
    }
    return;
  }
  for (int64_t half = 0; half < WIDTH; half += LANES) {
    const int64_t there = least(p->columns - column - half, LANES);
    for (int64_t k = 0; k < work->depth; k += LANES) {
      units rows[LANES] = {0}; /* of the columns that B has */
      for (int64_t i = 0; i < there; i++) {
        const int64_t at = (column + half + i) * p->depth + k * in_unit;
        rows[i] = row_of_units(entry(b, at, b_type), b_type, a_type);
      }
      transpose(rows);
      for (int64_t i = 0; i < LANES; i++) *(units *)(panel + (k + i) * WIDTH + half) = rows[i];
    }
  }
}

/* ---- tiles ------------------------------------------------------------------------------- */

struct place {
  const unit *a, *panel;
  const void *b;
  void *y;
  int64_t column;
};

INLINED void fetch(const void *from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)from + i, _MM_HINT_T0);
}

/* Fetches a share of the next panel's numbers in B, or without one the next rows of A. */
INLINED void fetch_next(const struct work *work, const struct place *at, int64_t row, int64_t rows) {
  const struct product *p = &work->is;
  const int64_t next = at->column + WIDTH, of_panel = WIDTH * size_of(p->b_type);
  const int64_t first = p->depth * row / p->rows, last = p->depth * (row + rows) / p->rows;
  if (p->columns <= WIDTH && !p->a_is_transposed && row + 2 * rows <= p->rows)
    fetch(at->a + (row + rows) * work->a_by_row, rows * work->a_by_row * sizeof(unit));
  if (next >= p->columns) return;
  if (p->b_is_transposed) /* the panel's columns follow one another */
    fetch(entry(at->b, next * p->depth + first * WIDTH, p->b_type), (last - first) * of_panel);
  else
    for (int64_t k = first; k < last; k++)
      fetch(entry(at->b, k * p->columns + next, p->b_type), of_panel);
}

/* Sums stay in registers only if all loops over them are unrolled. */
#define UNROLLED _Pragma("GCC unroll 12")

/* Writes the rows of a tile from `first` on; those above are in another tile. */
INLINED void tile(const struct work *work, const struct place *at, int64_t row, int64_t first,
                  const int rows, const int halves, enum type a_type, enum type y_type) {
  const struct product *p = &work->is;
  const int64_t by_row = work->a_by_row, by_unit = work->a_by_unit;
  fetch_next(work, at, row, rows);
  const unit *a = at->a + row * by_row;
  char *const y = (char *)at->y + (row * p->columns + at->column) * size_of(y_type);
  __m512 sums[ROWS][2];
  UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int half = 0; half < halves; half++) {
    const void *bias = entry(p->bias, at->column + half * LANES, a_type);
    const void *before = entry(y, i * p->columns + half * LANES, y_type);
    sums[i][half] = _mm512_setzero_ps();
    if (p->adds) sums[i][half] = load(before, y_type);
    if (p->bias) sums[i][half] = load(bias, a_type);
  }
  for (int64_t start = 0; start < work->depth; start += BLOCK) {
    const int64_t end = least(start + BLOCK, work->depth);
    __m512 before[ROWS][2];
    if (start) UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int h = 0; h < halves; h++) {
      before[i][h] = sums[i][h];
      sums[i][h] = _mm512_setzero_ps();
    }
    for (int64_t k = start; k < end; k++) {
      __m512i left = _mm512_load_si512(at->panel + k * WIDTH);
      __m512i right = _mm512_load_si512(at->panel + k * WIDTH + LANES);
      UNROLLED for (int i = 0; i < rows; i++) {
        unit each = a[i * by_row + k * by_unit];
        sums[i][0] = multiply_add(each, left, sums[i][0], a_type);
        if (halves == 2) sums[i][1] = multiply_add(each, right, sums[i][1], a_type);
      }
    }
    if (start) UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int h = 0; h < halves; h++)
      sums[i][h] = _mm512_add_ps(before[i][h], sums[i][h]);
  }
  UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int half = 0; half < halves; half++) {
    if (i < first) continue;
    void *out = y + (i * p->columns + half * LANES) * size_of(y_type);
    const int64_t there = p->columns - at->column - half * LANES;
    if (there >= LANES) {
      store(out, y_type, sums[i][half]);
    } else {
      char whole[64];
      store(whole, y_type, sums[i][half]);
      memcpy(out, whole, there * size_of(y_type));
    }
  }
}

INLINED void tiles(const struct work *work, const struct place *at, const int halves,
                   enum type a_type, enum type y_type) {
  const int64_t rows = work->is.rows;
  for (int64_t done = 0, size; done < rows; done += size) {
    const int64_t left = rows - done;
    size = left > 8 && rows >= ROWS ? ROWS : left > 4 && rows >= 8 ? 8 : rows >= 4 ? 4 : 1;
    const int64_t row = least(done, rows - size), first = done - row;
    if (size == ROWS) tile(work, at, row, first, ROWS, halves, a_type, y_type);
    if (size == 8) tile(work, at, row, first, 8, halves, a_type, y_type);
    if (size == 4) tile(work, at, row, first, 4, halves, a_type, y_type);
    if (size == 1) tile(work, at, row, first, 1, halves, a_type, y_type);
  }
}

INLINED void multiply_typed(const struct work *work, struct place at, unit *panel,
                            enum type a_type, enum type y_type) {
  if (work->is.b_type == FP32)
    fill_panel(panel, work, at.b, at.column, a_type, FP32);
  else
    fill_panel(panel, work, at.b, at.column, a_type, BF16);
  if (work->is.columns - at.column > LANES)
    tiles(work, &at, 2, a_type, y_type);
  else
    tiles(work, &at, 1, a_type, y_type);
}

static void multiply_panel(void *argument, int64_t number) {
  struct work *work = argument;
  const struct product *p = &work->is;
  const int64_t panels = panels_of(p), run = number / panels;
  unit *panel = aligned_alloc(64, work->depth * WIDTH * sizeof *panel);
  if (!panel) {
    work->has_failed = 1;
    return;
  }
  struct place at = {
      work->a + run * work->a_by_run,
      panel,
      entry(p->b, run * p->depth * p->columns, p->b_type),
      (char *)p->y + run * p->rows * p->columns * size_of(p->y_type),
      number % panels * WIDTH,
  };
  if (p->a_type == FP32)
    multiply_typed(work, at, panel, FP32, FP32);
  else if (p->y_type == FP32)
    multiply_typed(work, at, panel, BF16, FP32);
  else
    multiply_typed(work, at, panel, BF16, BF16);
  free(panel);
}

/* Returns the units of a transposed A in bf16, (runs, units, by_unit), or NULL without memory. */
static unit *paired_rows(const struct product *p, int64_t depth, int64_t by_unit) {
  unit *pairs = aligned_alloc(64, p->runs * depth * by_unit * sizeof *pairs);
  unit *out = pairs;
  for (int64_t run = 0; pairs && run < p->runs; run++)
    for (int64_t k = 0; k < p->depth; k += 2, out += by_unit)
      for (int64_t row = 0; row < p->rows; row += WIDTH) {
        const uint16_t *above = (const uint16_t *)p->a + (run * p->depth + k) * p->rows + row;
        const uint16_t *below = k + 1 < p->depth ? above + p->rows : NULL;
        const int64_t there = least(p->rows - row, WIDTH);
        uint16_t wholes[2][WIDTH] = {{0}};
        if (there < WIDTH) {
          above = memcpy(wholes[0], above, there * sizeof *above);
          if (below) below = memcpy(wholes[1], below, there * sizeof *below);
        }
        pair(out + row, above, below, BF16);
      }
  return pairs;
}

/* Returns 0, or -1 if there is no memory. */
int multiply(const struct product *p, int threads) {
  const int64_t depth = p->a_type == FP32 ? p->depth : (p->depth + 1) / 2;
  struct work work = {*p, p->a, p->rows * depth, depth, 1, depth, 0};
  unit *pairs = NULL;
  if (p->a_is_transposed) {
    work.a_by_row = 1;
    work.a_by_unit = p->rows;
    if (p->a_type == BF16) {
      work.a_by_unit = (p->rows + WIDTH - 1) / WIDTH * WIDTH;
      work.a_by_run = depth * work.a_by_unit;
      if (!(work.a = pairs = paired_rows(p, depth, work.a_by_unit))) return -1;
    }
  }
  in_parallel(multiply_panel, &work, p->runs * panels_of(p), threads);
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
