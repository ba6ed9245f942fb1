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

/* NaN if a is NaN. */
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

/* 2^x for x <= 126, or NaN, within a factor of 1 +- 1e-7, or 3e-6 where that is rounded to bf16. */
INLINED vector power_of_two(vector x, enum type type) {
  x = larger(x, (vector){0} - 200.0f);
#if defined(__AVX512F__)
  vector n = (vector)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  /* Adding and subtracting 1.5 * 2^23 rounds to an integer. */
  vector shifted = x + 12582912.0f, n = shifted - 12582912.0f;
#endif
  vector r = x - n, p;
  if (type == FP32) {
    p = 0.00015353362f * r + 0.0013398875f;
    p = p * r + 0.00961843692f;
    p = p * r + 0.0555033237f;
    p = p * r + 0.240226477f;
    p = p * r + 0.693147182f;
  } else {
    p = 0.00958285294f * r + 0.0559064262f;
    p = p * r + 0.240240991f;
    p = p * r + 0.693124175f;
  }
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (vector)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  integers power = ((integers)shifted + 127) << 23;
  return choose(x < -126.0f, (vector){0}, p * (vector)power);
#endif
}
