/* The Gram matrix of a matrix, and the tridiagonal matrix that has the same eigenvalues.

     gram          tiles += X'X, for some rows of X
     tridiagonal   tiles -> band of width B -> tridiagonal, by reflections only

   A symmetric matrix is kept as the tiles on and below its diagonal, each B x B, column of tiles
   after column of tiles, filled up with zeros to a multiple of B. So all products are those of
   small matrices in the processor's caches. Within a tile the entries lie in the order in which
   a product reads them (`entry`).

   Results depend on the numbers and the processor's vectors only, never on how many threads
   there are or which of them does what.

   Sources: Bischof, Lang & Sun, "A framework for symmetric band reduction", 2000 (dense to
   band); Haidar, Ltaief & Dongarra, "Parallel reduction to condensed forms for symmetric
   eigenvalue problems using aggregated fine-grained and memory-aware kernels", 2011 (band to
   tridiagonal). */

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum { B = 48, TILE = B * B };

#if defined(__AVX512F__)
enum { LANES = 8 };
#elif defined(__AVX__)
enum { LANES = 4 };
#else
enum { LANES = 2 };
#endif
typedef double vector __attribute__((vector_size(8 * LANES), aligned(8)));
enum { PIECES = B / LANES, WIDTH = 2 * LANES };

#define ALIGNED __attribute__((aligned(64)))

/* ---- tiles ------------------------------------------------------------------------------ */

static int64_t tiles_along(int64_t n) { return (n + B - 1) / B; }

/* Tile (row, column), row >= column, of a matrix of `size` tiles along each side. */
static double *tile_at(double *tiles, int64_t size, int64_t row, int64_t column) {
  return tiles + (column * size - column * (column - 1) / 2 + row - column) * TILE;
}

/* Where (row, column) is in a tile: WIDTH columns row after row, then the next ones. */
INLINED int64_t entry(int64_t row, int64_t column) {
  return column / WIDTH * (B * WIDTH) + row * WIDTH + column % WIDTH;
}

static void transpose(double *restrict out, const double *restrict tile) {
  for (int64_t row = 0; row < B; row++)
    for (int64_t column = 0; column < B; column++)
      out[entry(column, row)] = tile[entry(row, column)];
}

enum form { AS_IT_IS, TRANSPOSED };
enum sign { SET, ADD, SUBTRACT };

/* c = a b, c += a b or c -= a b for tiles, or the same with the transpose of a. 6 rows by 2
   vectors of c stay in registers. */
INLINED void multiply(double *restrict c, const double *restrict a, enum form form,
                      const double *restrict b, enum sign sign) {
  enum { ROWS = 6 };
  const int64_t by_panel = form == TRANSPOSED ? WIDTH * WIDTH : B * WIDTH;
  const int64_t by_k = form == TRANSPOSED ? WIDTH : 1;
  for (int64_t column = 0; column < B; column += WIDTH)
    for (int64_t row = 0; row < B; row += ROWS) {
      vector sum[ROWS][2] = {0};
      for (int64_t panel = 0; panel < B / WIDTH; panel++) {
        const double *rows[ROWS], *right = b + entry(panel * WIDTH, column);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
          rows[r] = a + panel * by_panel +
                    (form == TRANSPOSED ? entry(0, row + r) : entry(row + r, 0));
#pragma GCC unroll 8
        for (int k = 0; k < WIDTH; k++) {
          const vector *pair = (const vector *)(right + k * WIDTH);
#pragma GCC unroll 6
          for (int r = 0; r < ROWS; r++) {
            double left = rows[r][k * by_k];
            sum[r][0] += left * pair[0];
            sum[r][1] += left * pair[1];
          }
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        vector *out = (vector *)(c + entry(row + r, column));
        for (int v = 0; v < 2; v++)
          out[v] = sign == SET ? sum[r][v] : sign == ADD ? out[v] + sum[r][v] : out[v] - sum[r][v];
      }
    }
}

/* ---- Gram matrix ------------------------------------------------------------------------ */

/* Tiles of rows of X at a time, and columns of tiles a task: what is read of X for them fits
   into the second cache. */
enum { DEEP = 4, WIDE = 4 };

struct gram {
  const double *x;
  int64_t by_row, by_column, rows, n, size, first;
  double *tiles, *strips;
};

/* Tile k of a strip, B columns of X. */
static double *strip_at(struct gram *g, int64_t strip, int64_t k, enum form form) {
  return g->strips + ((strip * DEEP + k) * 2 + form) * TILE;
}

static void pack_strip(void *work, int64_t strip) {
  struct gram *g = work;
  int64_t width = g->n - strip * B, depth = g->rows - g->first;
  if (width > B) width = B;
  if (depth > DEEP * B) depth = DEEP * B;
  const double *x = g->x + g->first * g->by_row + strip * B * g->by_column;
  memset(strip_at(g, strip, 0, AS_IT_IS), 0, DEEP * 2 * TILE * sizeof(double));
  for (int64_t row = 0; row < depth; row++) {
    double *tile = strip_at(g, strip, row / B, AS_IT_IS);
    for (int64_t column = 0; column < width; column++)
      tile[entry(row % B, column)] = x[row * g->by_row + column * g->by_column];
  }
  for (int64_t k = 0; k < DEEP; k++)
    transpose(strip_at(g, strip, k, TRANSPOSED), strip_at(g, strip, k, AS_IT_IS));
}

static void add_products(void *work, int64_t number) {
  struct gram *g = work;
  int64_t first = number * WIDE, end = first + WIDE < g->size ? first + WIDE : g->size;
  int64_t deep = tiles_along(g->rows - g->first) < DEEP ? tiles_along(g->rows - g->first) : DEEP;
  for (int64_t row = first; row < g->size; row++)
    for (int64_t column = first; column < end && column <= row; column++)
      for (int64_t k = 0; k < deep; k++)
        multiply(tile_at(g->tiles, g->size, row, column), strip_at(g, row, k, TRANSPOSED),
                 AS_IT_IS, strip_at(g, column, k, AS_IT_IS), ADD);
}

/* tiles += X'X for X (rows, n), strides in entries. Gives 1 where memory is short, else 0. */
int gram(const double *x, int64_t by_row, int64_t by_column, int64_t rows, int64_t n,
         double *tiles, int threads) {
  struct gram g = {x, by_row, by_column, rows, n, tiles_along(n), 0, tiles, NULL};
  g.strips = aligned_alloc(64, g.size * DEEP * 2 * TILE * sizeof(double));
  if (!g.strips) return 1;
  for (g.first = 0; g.first < rows; g.first += DEEP * B) {
    in_parallel(pack_strip, &g, g.size, threads);
    in_parallel(add_products, &g, (g.size + WIDE - 1) / WIDE, threads);
  }
  free(g.strips);
  return 0;
}

/* ---- reflections ------------------------------------------------------------------------ */

/* I - tau v v' with v = (1, inverse * rest), which takes (first, rest) to (beta, 0). */
struct reflection {
  double tau, beta, inverse;
};

/* What is below 1e-140 is taken for zero: it is nothing beside a largest entry near 1, and its
   square is too coarse a number for a reflection that is to be orthogonal. */
static struct reflection reflection_of(double first, double squared_rest) {
  if (squared_rest < 1e-280) return (struct reflection){0.0, first, 0.0};
  double beta = -copysign(sqrt(first * first + squared_rest), first);
  return (struct reflection){(beta - first) / beta, beta, 1.0 / (first - beta)};
}

/* QR of a panel (rows, B) in place: R on and above the diagonal, the v below it. One pass over
   the rows a column: it applies the column's reflection, and gathers for the next column
   products[c], the sum of panel[row][column] * panel[row][c] over the rows below. */
static void factor_panel(double *restrict panel, int64_t rows, double *restrict tau) {
  double products[B] = {0}, along[B];
  for (int64_t row = 1; row < rows; row++)
    for (int c = 0; c < B; c++) products[c] += panel[row * B] * panel[row * B + c];
  for (int column = 0; column < B; column++) {
    double *top = panel + column * B;
    struct reflection h = reflection_of(top[column], products[column]);
    tau[column] = h.tau;
    for (int c = 0; c < B; c++) {
      along[c] = c > column ? h.tau * (top[c] + h.inverse * products[c]) : 0.0;
      top[c] -= along[c];
      products[c] = 0.0;
    }
    top[column] = h.beta;
    int next = column + 1, from = next / LANES * LANES;
    for (int64_t i = next; i < rows; i++) {
      double *restrict row = panel + i * B;
      double v = row[column] *= h.inverse;
      double x = i > next && next < B ? row[next] - v * along[next] : 0.0;
      for (int c = from; c < B; c++) {
        row[c] -= v * along[c];
        products[c] += x * row[c];
      }
    }
  }
}

/* ---- dense to band ---------------------------------------------------------------------- */

/* Step k: Q = I - V T V' clears panel k below its R. With X = A V T and W = X - V (T' V' X) / 2
   the rest becomes Q' A Q = A - V W' - W V'. V, X and W have a tile for each row of tiles. */
struct reduction {
  int64_t size, step;
  double *tiles;
  double *v, *x;                 /* V; X, then W */
  double *v_before;              /* V of the step before; its W is still in x */
  double *transposed;            /* per row of tiles: V' and W' of the step before */
  double *parts;                 /* per row of tiles: its part of V' X; before, the panel */
  double t[TILE] ALIGNED;        /* T */
  double half_vx[TILE] ALIGNED;  /* -T' V' X / 2 */
};

/* A -= V W' + W V' in one column of tiles, with those of the step before. */
static void update_column(struct reduction *r, int64_t column) {
  const double *v = r->transposed + column * 2 * TILE, *w = v + TILE;
  for (int64_t row = column; row < r->size; row++) {
    double *tile = tile_at(r->tiles, r->size, row, column);
    multiply(tile, r->v_before + row * TILE, AS_IT_IS, w, SUBTRACT);
    multiply(tile, r->x + row * TILE, AS_IT_IS, v, SUBTRACT);
  }
}

/* T from V'V and tau, column by column as LAPACK's dlarft. */
static void join_reflections(const double *vv, const double *tau, double *t) {
  memset(t, 0, TILE * sizeof(double));
  for (int column = 0; column < B; column++) {
    for (int row = 0; row < column; row++) {
      double sum = 0.0;
      for (int k = row; k < column; k++) sum += t[entry(row, k)] * vv[entry(k, column)];
      t[entry(row, column)] = -tau[column] * sum;
    }
    t[entry(column, column)] = tau[column];
  }
}

/* V, T and R of the step's panel. R goes to its first tile, the others are used no more. */
static void reduce_panel(struct reduction *r) {
  int64_t first = r->step + 1, rows = (r->size - first) * B;
  double tau[B], vv[TILE] ALIGNED = {0}, *by_rows = r->parts;
  double *panel = tile_at(r->tiles, r->size, first, r->step), *v = r->v + first * TILE;
  for (int64_t row = 0; row < rows; row++)
    for (int column = 0; column < B; column++)
      by_rows[row * B + column] = panel[row / B * TILE + entry(row % B, column)];
  factor_panel(by_rows, rows, tau);
  for (int64_t row = 0; row < rows; row++)
    for (int column = 0; column < B; column++)
      v[row / B * TILE + entry(row % B, column)] = by_rows[row * B + column];
  for (int row = 0; row < B; row++)
    for (int column = row; column < B; column++) {
      panel[entry(row, column)] = by_rows[row * B + column];
      v[entry(row, column)] = row == column;
    }
  for (int64_t row = 0; row < rows; row += B)
    multiply(vv, v + row * B, TRANSPOSED, v + row * B, ADD);
  join_reflections(vv, tau, r->t);
}

/* The column of the step's panel, and the panel, are the first task: they take longest. */
static void update(void *work, int64_t number) {
  struct reduction *r = work;
  if (r->step > 0) update_column(r, r->step + number);
  if (number == 0 && r->step + 1 < r->size) reduce_panel(r);
}

/* X and the part of V' X for one row of tiles. */
static void multiply_row(void *work, int64_t number) {
  struct reduction *r = work;
  int64_t first = r->step + 1, row = first + number;
  double av[TILE] ALIGNED = {0}, *x = r->x + row * TILE;
  for (int64_t column = first; column <= row; column++)
    multiply(av, tile_at(r->tiles, r->size, row, column), AS_IT_IS, r->v + column * TILE, ADD);
  for (int64_t below = row + 1; below < r->size; below++)
    multiply(av, tile_at(r->tiles, r->size, below, row), TRANSPOSED, r->v + below * TILE, ADD);
  multiply(x, av, AS_IT_IS, r->t, SET);
  multiply(r->parts + row * TILE, r->v + row * TILE, TRANSPOSED, x, SET);
}

static void sum_parts(struct reduction *r) {
  double *total = r->parts + (r->step + 1) * TILE;
  for (int64_t row = r->step + 2; row < r->size; row++)
    for (int i = 0; i < TILE; i++) total[i] += r->parts[row * TILE + i];
  multiply(r->half_vx, r->t, TRANSPOSED, total, SET);
  for (int i = 0; i < TILE; i++) r->half_vx[i] *= -0.5;
}

/* W for one row of tiles, and what the next step's update needs. */
static void finish_row(void *work, int64_t number) {
  struct reduction *r = work;
  int64_t row = r->step + 1 + number;
  double *w = r->x + row * TILE, *v = r->v + row * TILE;
  multiply(w, v, AS_IT_IS, r->half_vx, ADD);
  transpose(r->transposed + row * 2 * TILE, v);
  transpose(r->transposed + row * 2 * TILE + TILE, w);
}

/* Leaves in the tiles the diagonal ones and the R below them of a band with the same eigenvalues.
   Gives 1 where memory is short, else 0. */
static int reduce_to_band(double *tiles, int64_t size, int threads) {
  struct reduction r = {.size = size, .tiles = tiles};
  double *space = aligned_alloc(64, size * 6 * TILE * sizeof(double));
  if (!space) return 1;
  r.v = space;
  r.v_before = r.v + size * TILE;
  r.x = r.v_before + size * TILE;
  r.parts = r.x + size * TILE;
  r.transposed = r.parts + size * TILE;
  for (; r.step < size; r.step++) {
    int64_t below = size - r.step - 1;
    in_parallel(update, &r, below + 1, threads);
    if (below == 0) break;
    in_parallel(multiply_row, &r, below, threads);
    sum_parts(&r);
    in_parallel(finish_row, &r, below, threads);
    double *v = r.v;
    r.v = r.v_before;
    r.v_before = v;
  }
  free(space);
  return 0;
}

/* ---- band to tridiagonal ---------------------------------------------------------------- */

/* Entry (row, column), row >= column, is at band[column * ALONG + row]: 2 B rows of each column,
   as far as the bulges reach, and some room, so that a block's columns spread over the cache.
   2 B columns of zeros follow the last one, so that every block is a whole one.

   Sweeps go in groups, one after another through the same part of the band while that is in
   the cache. A count of steps has a line of the cache to itself. */
enum { ALONG = 2 * B + 8, GROUP = 4, LINE = 8 };

INLINED double sum_of(vector x) {
  double sum = 0.0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

static double dot(const double *restrict a, const double *restrict b) {
  vector sum[2] = {0};
#pragma GCC unroll 24
  for (int i = 0; i < PIECES; i++) sum[i % 2] += ((const vector *)a)[i] * ((const vector *)b)[i];
  return sum_of(sum[0] + sum[1]);
}

/* x <- (beta, 0); v and the value given are the reflection's. */
static double reflect_vector(double *restrict x, double *restrict v) {
  memcpy(v, x, B * sizeof(double));
  v[0] = 0.0;
  struct reflection h = reflection_of(x[0], dot(v, v));
  for (int i = 0; i < B; i++) v[i] *= h.inverse;
  memset(x, 0, B * sizeof(double));
  v[0] = 1.0;
  x[0] = h.beta;
  return h.tau;
}

/* D <- H D H for a block on the diagonal, of which only the lower triangle is there: LANES
   columns at a time, first their triangle, then the rows below it. */
static void reflect_both_sides(double *restrict d, const double *restrict v, double tau) {
  double p[B] ALIGNED = {0};
  for (int c = 0; c < B; c += LANES) {
    const double *columns = d + c * ALONG;
    vector sums[LANES] = {0};
    for (int i = c + LANES; i < B; i += LANES) {
      vector *below = (vector *)(p + i);
#pragma GCC unroll 8
      for (int k = 0; k < LANES; k++) {
        vector entry = *(const vector *)(columns + k * ALONG + i);
        sums[k] += entry * *(const vector *)(v + i);
        *below += entry * v[c + k];
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < LANES; k++) {
      p[c + k] += sum_of(sums[k]);
#pragma GCC unroll 8
      for (int i = 0; i < LANES; i++)
        p[c + k] += (i > k ? columns[k * ALONG + c + i] : columns[i * ALONG + c + k]) * v[c + i];
    }
  }
  double half = 0.5 * tau * dot(p, v);
  for (int i = 0; i < B; i++) p[i] = tau * (p[i] - half * v[i]);
  for (int c = 0; c < B; c += LANES) {
    double *columns = d + c * ALONG;
#pragma GCC unroll 8
    for (int k = 0; k < LANES; k++)
#pragma GCC unroll 8
      for (int i = k; i < LANES; i++)
        columns[k * ALONG + c + i] -= v[c + i] * p[c + k] + p[c + i] * v[c + k];
    for (int i = c + LANES; i < B; i += LANES)
#pragma GCC unroll 8
      for (int k = 0; k < LANES; k++)
        *(vector *)(columns + k * ALONG + i) -=
            *(const vector *)(v + i) * p[c + k] + *(const vector *)(p + i) * v[c + k];
  }
}

/* e <- H(u) (e - factor y) for one column of a block, which stays in registers. */
INLINED void reflect_column(double *restrict e, const double *restrict y, double factor,
                            const double *restrict u, double tau) {
  vector x[PIECES], sum[2] = {0};
#pragma GCC unroll 24
  for (int i = 0; i < PIECES; i++) {
    x[i] = ((const vector *)e)[i] - factor * ((const vector *)y)[i];
    sum[i % 2] += x[i] * ((const vector *)u)[i];
  }
  double s = tau * sum_of(sum[0] + sum[1]);
#pragma GCC unroll 24
  for (int i = 0; i < PIECES; i++) ((vector *)e)[i] = x[i] - s * ((const vector *)u)[i];
}

/* E <- H(u) E H(v) for the block below the diagonal; H(u) is made to clear its first column. */
static double chase_block(double *restrict e, const double *restrict v, double tau,
                          double *restrict u) {
  double y[B] ALIGNED;
  vector sum[PIECES] = {0};
  for (int c = 0; c < B; c++)
#pragma GCC unroll 24
    for (int i = 0; i < PIECES; i++) sum[i] += v[c] * ((const vector *)(e + c * ALONG))[i];
  for (int i = 0; i < PIECES; i++) {
    ((vector *)y)[i] = tau * sum[i];
    ((vector *)e)[i] -= tau * sum[i];
  }
  double next = reflect_vector(e, u);
  for (int c = 1; c < B; c++) reflect_column(e + c * ALONG, y, v[c], u, next);
  return next;
}

struct chase {
  int64_t n;
  double *band;
  _Atomic int64_t *done; /* steps, at done[sweep * LINE] */
};

static int64_t steps_of(int64_t n, int64_t sweep) { return (n - 2 - sweep) / B + 1; }

/* Waits until the sweep before has done the step after this one, which shares entries with it.
   Groups start in order, so somebody is at work on that sweep. */
static void wait_for_sweep(struct chase *w, int64_t before, int64_t step) {
  int64_t last = steps_of(w->n, before), needed = step + 2 < last ? step + 2 : last;
  for (int tries = 0;
       atomic_load_explicit(&w->done[before * LINE], memory_order_acquire) < needed; tries++)
    if (tries > 200) sched_yield();
}

/* Sweep s clears column s below its second entry and chases the bulge that this makes down the
   band: its step k works on B columns from s + 1 + k B on. */
static void chase_group(void *work, int64_t group) {
  struct chase *w = work;
  double v[GROUP][2][B] ALIGNED, tau[GROUP];
  int64_t first = group * GROUP, sweeps = w->n - 2;
  int64_t count = sweeps - first < GROUP ? sweeps - first : GROUP;
  int64_t rounds = steps_of(w->n, first) + 2 * (count - 1);
  for (int64_t round = 0; round < rounds; round++)
    for (int64_t i = 0; i < count; i++) {
      int64_t sweep = first + i, step = round - 2 * i, start = sweep + 1 + step * B;
      if (step < 0 || start >= w->n) continue;
      if (i == 0 && sweep > 0) wait_for_sweep(w, sweep - 1, step);
      double *diagonal = w->band + start * ALONG + start, *reflection = v[i][step % 2];
      if (step == 0) tau[i] = reflect_vector(diagonal - ALONG, reflection);
      reflect_both_sides(diagonal, reflection, tau[i]);
      tau[i] = chase_block(diagonal + B, reflection, tau[i], v[i][(step + 1) % 2]);
      atomic_store_explicit(&w->done[sweep * LINE], step + 1, memory_order_release);
    }
}

static void copy_band(double *tiles, int64_t n, double *band) {
  int64_t size = tiles_along(n);
  for (int64_t column = 0; column < n; column++) {
    int64_t k = column / B, c = column % B;
    const double *diagonal = tile_at(tiles, size, k, k), *below = diagonal + TILE;
    double *out = band + column * ALONG + k * B;
    for (int64_t row = c; row < B; row++) out[row] = diagonal[entry(row, c)];
    if (k + 1 < size)
      for (int64_t row = 0; row <= c; row++) out[B + row] = below[entry(row, c)];
  }
}

/* ---- all of it -------------------------------------------------------------------------- */

/* Doubles in the tiles of a matrix of n rows. */
int64_t tiles_length(int64_t n) { return tiles_along(n) * (tiles_along(n) + 1) / 2 * TILE; }

/* Diagonal (n) and the entries beside it (n - 1) of the tridiagonal matrix; overwrites the
   tiles, whose largest entry has to be near 1. Gives 1 where memory is short, else 0. */
int tridiagonal(double *tiles, int64_t n, double *diagonal, double *beside, int threads) {
  struct chase w = {n, calloc((n + 2 * B) * (ALONG + 1), sizeof(double)),
                    calloc(n * LINE, sizeof(_Atomic int64_t))};
  int failed = !w.band || !w.done || reduce_to_band(tiles, tiles_along(n), threads);
  if (!failed) {
    copy_band(tiles, n, w.band);
    if (n > 2) in_parallel(chase_group, &w, (n - 2 + GROUP - 1) / GROUP, threads);
    for (int64_t i = 0; i < n; i++) diagonal[i] = w.band[i * (ALONG + 1)];
    for (int64_t i = 0; i + 1 < n; i++) beside[i] = w.band[i * (ALONG + 1) + 1];
  }
  free(w.band);
  free(w.done);
  return failed;
}
