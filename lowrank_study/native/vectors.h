/* Vectors of floats as wide as the processor's, read from and written to fp32 or bf16. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINED int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
INLINED int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINED vector choose(integers where, vector yes, vector no) {
  return (vector)((where & (integers)yes) | (~where & (integers)no));
}

/* NaN if b is NaN. */
#if defined(__AVX512F__)
INLINED vector smaller(vector a, vector b) { return (vector)_mm512_min_ps((__m512)b, (__m512)a); }
INLINED vector larger(vector a, vector b) { return (vector)_mm512_max_ps((__m512)b, (__m512)a); }
#else
INLINED vector smaller(vector a, vector b) { return choose(b < a, b, a); }
INLINED vector larger(vector a, vector b) { return choose(b > a, b, a); }
#endif

/* ---- fp32 and bf16 ---------------------------------------------------------------------- */

enum type { FP32, BF16 };
#if defined(__AVX512F__) /* one instruction, which compilers don't find */
INLINED integers lengthened(halves x) { return (integers)_mm512_cvtepu16_epi32((__m256i)x); }
INLINED halves shortened(integers x) { return (halves)_mm512_cvtepi32_epi16((__m512i)x); }
#else
INLINED integers lengthened(halves x) { return __builtin_convertvector(x, integers); }
INLINED halves shortened(integers x) { return __builtin_convertvector(x, halves); }
#endif

INLINED vector widened(halves x) { return (vector)(lengthened(x) << 16); }

/* Rounds to nearest, ties to even; NaN stays NaN. The instruction takes numbers below 1.2e-38 for 0. */
INLINED halves narrowed(vector x) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  return (halves)_mm512_cvtneps_pbh((__m512)x);
#endif
  integers bits = (integers)x;
  integers rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return shortened((integers)choose(x != x, (vector)((integers){0} + 0x7fc0), (vector)rounded));
}

INLINED vector load(const void *in, int64_t i, enum type type) {
  if (type == FP32) return *(const vector *)((const float *)in + i);
  return widened(*(const halves *)((const uint16_t *)in + i));
}

INLINED void store(void *out, int64_t i, enum type type, vector x) {
  if (type == FP32)
    *(vector *)((float *)out + i) = x;
  else
    *(halves *)((uint16_t *)out + i) = narrowed(x);
}

/* The same for fewer entries than a vector has. */
INLINED vector load_some(const void *in, int64_t i, enum type type, int64_t count) {
  const int64_t size = type == FP32 ? 4 : 2;
  float some[LANES] = {0};
  memcpy(some, (const char *)in + i * size, count * size);
  return load(some, 0, type);
}

INLINED void store_some(void *out, int64_t i, enum type type, vector x, int64_t count) {
  const int64_t size = type == FP32 ? 4 : 2;
  float some[LANES];
  store(some, 0, type, x);
  memcpy((char *)out + i * size, some, count * size);
}

INLINED vector load_up_to(const void *in, int64_t i, enum type type, int64_t count) {
  return count < LANES ? load_some(in, i, type, count) : load(in, i, type);
}

INLINED void store_up_to(void *out, int64_t i, enum type type, vector x, int64_t count) {
  count < LANES ? store_some(out, i, type, x, count) : store(out, i, type, x);
}

/* `row` = factor * n entries, and zeros up to a multiple of LANES. */
INLINED void load_row(float *row, const void *in, int64_t at, enum type type, int64_t n,
                      float factor) {
  for (int64_t i = 0; i < n; i += LANES)
    *(vector *)(row + i) = factor * load_up_to(in, at + i, type, n - i);
}

INLINED void store_row(void *out, int64_t at, enum type type, int64_t n, const float *row,
                       float factor) {
  for (int64_t i = 0; i < n; i += LANES)
    store_up_to(out, at + i, type, factor * *(const vector *)(row + i), n - i);
}

/* ---- functions of vectors --------------------------------------------------------------- */

INLINED float sum_of(vector x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sums[LANES];
  *(vector *)sums = x;
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) sums[i] += sums[i + half];
  return sums[0];
#endif
}

/* exp(x) for -87 <= x <= 88, or NaN. */
INLINED vector exponential_within(vector x) {
  /* Adding and subtracting 1.5 * 2^23 rounds to an integer. */
  vector shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  integers power = ((integers)shifted + 127) << 23;
  return p * (vector)power;
}

/* exp(x) for x <= 0, or NaN; 0 where it is below 1e-37. */
INLINED vector exponential(vector x) {
  integers vanishes = x < -86.0f;
  vector zero = {0};
  return choose(vanishes, zero, exponential_within(choose(vanishes, zero, x)));
}
