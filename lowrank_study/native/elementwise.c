/* Functions of single entries and their gradients, in fp32 arithmetic on fp32 or bf16 tensors.

     gelu     x Phi(x), as in BERT and GPT-2
     swiglu   silu(gate) * up, as in Llama
     rotate   rotary positions of queries or keys

   Source of the formulas: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Shazeer, "GLU
   Variants Improve Transformer", 2020; Su et al., "RoFormer", 2021. */

#include "vectors.h"

/* ---- any function of entries ------------------------------------------------------------ */

/* Vectors at a time: the processor computes them at once where each operation waits for another. */
enum { PIECES = 4, STEP = PIECES * LANES, CHUNK = 1 << 14, MOST_TENSORS = 3 };
#define EACH_PIECE _Pragma("GCC unroll 4") for (int k = 0; k < PIECES; k++)

/* Reads and writes `steps` * STEP entries of each tensor. */
typedef void function(const char *const *in, char *const *out, int64_t steps);

struct entries {
  function *of;
  const char *const *in;
  char *const *out;
  int64_t inputs, outputs, count, size; /* size: bytes of an entry */
};

static void compute_chunk(void *work, int64_t number) {
  const struct entries *e = work;
  int64_t from = number * CHUNK, n = least(CHUNK, e->count - from), whole = n / STEP;
  const char *in[MOST_TENSORS];
  char *out[MOST_TENSORS];
  for (int i = 0; i < e->inputs; i++) in[i] = e->in[i] + from * e->size;
  for (int i = 0; i < e->outputs; i++) out[i] = e->out[i] + from * e->size;
  e->of(in, out, whole);
  if (whole * STEP == n) return;
  /* The rest is computed in a copy that is filled up with zeros. */
  float copies[2 * MOST_TENSORS][STEP] = {0};
  char *some[MOST_TENSORS];
  int64_t done = whole * STEP * e->size, bytes = n * e->size - done;
  for (int i = 0; i < e->inputs; i++)
    in[i] = memcpy(copies[i], in[i] + done, bytes);
  for (int i = 0; i < e->outputs; i++) some[i] = (char *)copies[MOST_TENSORS + i];
  e->of(in, some, 1);
  for (int i = 0; i < e->outputs; i++) memcpy(out[i] + done, some[i], bytes);
}

static void compute(function *fp32, function *bf16, struct entries e, int type, int threads) {
  e.of = type == FP32 ? fp32 : bf16;
  e.size = type == FP32 ? 4 : 2;
  in_parallel(compute_chunk, &e, (e.count + CHUNK - 1) / CHUNK, threads);
}

/* Defines NAME_fp32 and NAME_bf16 from NAME(in, out, at, type), which computes a step. */
#define FOR_TYPES(name)                                                                 \
  static void name##_fp32(const char *const *in, char *const *out, int64_t steps) {     \
    for (int64_t i = 0; i < steps; i++) name(in, out, i * STEP, FP32);                  \
  }                                                                                     \
  static void name##_bf16(const char *const *in, char *const *out, int64_t steps) {     \
    for (int64_t i = 0; i < steps; i++) name(in, out, i * STEP, BF16);                  \
  }

/* ---- GELU ------------------------------------------------------------------------------- */

/* A series near the function on [0, most], as powers of 2 a / most - 1, the highest first. */
struct series {
  int degree;
  float most;
  float of[21];
};

/* The probability that a standard normal number is above a. Times a, it is exact within 4e-7, or in
   bf16 2e-5. */
static const struct series TAIL[] = {
    [FP32] = {18, 5.6f, {-0.00195000082f, 0.00274429193f,  0.010220145f,   -0.0200981134f,
                         -0.0157929727f,  0.0633717742f,   -0.0236780531f, -0.093421377f,
                         0.134541044f,    -0.00135345186f, -0.188869787f,  0.216837026f,
                         -0.0286279554f,  -0.197831109f,   0.274722393f,   -0.198085758f,
                         0.0868800587f,   -0.0221632754f,  0.00255513033f}},
    [BF16] = {10, 4.7f, {0.00734103564f, -0.0312012024f, 0.016338475f, 0.0847929195f, -0.136021256f,
                         0.0034646485f, 0.189303443f, -0.247946218f, 0.163757458f, -0.0592146851f,
                         0.00938446168f}}};

/* The derivative of GELU at -a: exact within 2e-7, in bf16 1e-4. */
static const struct series SLOPE[] = {
    [FP32] = {20, 6.0f, {0.00677632099f, 0.0397762028f, -0.0942541977f, -0.209972751f,
                         0.48718003f, 0.355108891f, -1.30647384f, 0.188055958f,
                         1.850857f, -1.66086528f, -0.789785908f, 2.45155023f,
                         -1.45062298f, -0.815423021f, 1.85740491f, -1.13001721f,
                         1.42519751e-05f, 0.438717684f, -0.29914996f, 0.0930692965f,
                         -0.0119456472f}},
    [BF16] = {10, 5.2f, {0.249169067f, -0.297676146f, -0.699154317f, 1.13808906f, 0.27552858f,
                         -1.3624351f, 0.790761054f, 0.104194067f, -0.335737228f, 0.167735606f,
                         -0.0305685103f}}};

/* a = min(|x|, most), and the sum of a series at it. */
INLINED void sum_series(struct series s, const vector *x, vector *a, vector *sums) {
  vector at[PIECES];
  EACH_PIECE {
    a[k] = smaller((vector)((integers)x[k] & 0x7fffffff), (vector){0} + s.most);
    at[k] = a[k] * (2.0f / s.most) - 1.0f;
    sums[k] = at[k] * s.of[0] + s.of[1];
  }
#pragma GCC unroll 32
  for (int i = 2; i <= s.degree; i++) EACH_PIECE sums[k] = sums[k] * at[k] + s.of[i];
}

INLINED void gelu_forward(const char *const *in, char *const *out, int64_t i, enum type type) {
  vector x[PIECES], a[PIECES], tail[PIECES];
  EACH_PIECE x[k] = load(in[0], i + k * LANES, type);
  sum_series(TAIL[type], x, a, tail);
  EACH_PIECE store(out[0], i + k * LANES, type, larger(x[k], (vector){0}) - a[k] * tail[k]);
}

INLINED void gelu_backward(const char *const *in, char *const *out, int64_t i, enum type type) {
  vector x[PIECES], a[PIECES], slope[PIECES];
  EACH_PIECE x[k] = load(in[0], i + k * LANES, type);
  sum_series(SLOPE[type], x, a, slope);
  EACH_PIECE {
    vector gradient = load(in[1], i + k * LANES, type);
    store(out[0], i + k * LANES, type, gradient * choose(x[k] > 0.0f, 1.0f - slope[k], slope[k]));
  }
}

FOR_TYPES(gelu_forward)
FOR_TYPES(gelu_backward)

/* out = GELU(x), or with a gradient of the result, the gradient of x. */
void gelu(const void *x, const void *out_gradient, void *out, int64_t entries, int type,
          int threads) {
  const char *in[] = {x, out_gradient};
  char *to[] = {out};
  struct entries e = {.in = in, .out = to, .inputs = out_gradient ? 2 : 1, .outputs = 1,
                      .count = entries};
  if (out_gradient)
    compute(gelu_backward_fp32, gelu_backward_bf16, e, type, threads);
  else
    compute(gelu_forward_fp32, gelu_forward_bf16, e, type, threads);
}

/* ---- SwiGLU ----------------------------------------------------------------------------- */

/* 1 / (1 + exp(-x)). */
INLINED vector sigmoid(vector x, enum type type) {
  const vector most = (vector){0} + 126.0f; /* 2^most is finite */
  return 1.0f / (1.0f + power_of_two(smaller(x * -1.44269504f, most), type));
}

INLINED void swiglu_forward(const char *const *in, char *const *out, int64_t i, enum type type) {
  EACH_PIECE {
    vector gate = load(in[0], i + k * LANES, type), up = load(in[1], i + k * LANES, type);
    store(out[0], i + k * LANES, type, gate * sigmoid(gate, type) * up);
  }
}

INLINED void swiglu_backward(const char *const *in, char *const *out, int64_t i, enum type type) {
  EACH_PIECE {
    int64_t at = i + k * LANES;
    vector gate = load(in[0], at, type), up = load(in[1], at, type);
    vector gradient = load(in[2], at, type), share = sigmoid(gate, type), silu = gate * share;
    store(out[0], at, type, gradient * up * (share + silu * (1.0f - share)));
    store(out[1], at, type, gradient * silu);
  }
}

FOR_TYPES(swiglu_forward)
FOR_TYPES(swiglu_backward)

/* out = silu(gate) * up, or with a gradient of the result, the gradients of gate (in out) and up. */
void swiglu(const void *gate, const void *up, const void *out_gradient, void *out,
            void *up_gradient, int64_t entries, int type, int threads) {
  const char *in[] = {gate, up, out_gradient};
  char *to[] = {out, up_gradient};
  struct entries e = {.in = in, .out = to, .inputs = 2, .outputs = 1, .count = entries};
  if (out_gradient) {
    e.inputs = 3;
    e.outputs = 2;
    compute(swiglu_backward_fp32, swiglu_backward_bf16, e, type, threads);
  } else {
    compute(swiglu_forward_fp32, swiglu_forward_bf16, e, type, threads);
  }
}

/* ---- rotary positions ------------------------------------------------------------------- */

/* x and out are (tokens, heads, 2 half), contiguous; cosine and sine (tokens, 2 half). */
struct rotation {
  const void *x;
  const float *cosine, *sine;
  void *out;
  int64_t tokens, heads, half;
  enum type type;
  int backward;
};

/* out = x * cosine + (-x2, x1) * sine for the halves x1 and x2 of a row; backward, its transpose. */
INLINED void rotate_token(const struct rotation *r, int64_t token, enum type type, int backward) {
  int64_t half = r->half;
  const float *cosine = r->cosine + token * 2 * half, *sine = r->sine + token * 2 * half;
  for (int64_t head = 0; head < r->heads; head++) {
    int64_t at = (token * r->heads + head) * 2 * half;
    for (int64_t i = 0; i < half; i += LANES) {
      int64_t n = half - i;
      vector x1 = load_up_to(r->x, at + i, type, n), x2 = load_up_to(r->x, at + half + i, type, n);
      vector c1 = load_up_to(cosine, i, FP32, n), c2 = load_up_to(cosine, half + i, FP32, n);
      vector s1 = load_up_to(sine, i, FP32, n), s2 = load_up_to(sine, half + i, FP32, n);
      vector y1 = backward ? x1 * c1 + x2 * s2 : x1 * c1 - x2 * s1;
      vector y2 = backward ? x2 * c2 - x1 * s1 : x2 * c2 + x1 * s2;
      store_up_to(r->out, at + i, type, y1, n);
      store_up_to(r->out, at + half + i, type, y2, n);
    }
  }
}

enum { TOKENS = 64 };

static void rotate_task(void *work, int64_t number) {
  const struct rotation *r = work;
  int64_t end = least((number + 1) * TOKENS, r->tokens);
  for (int64_t token = number * TOKENS; token < end; token++) {
    if (r->type == FP32)
      r->backward ? rotate_token(r, token, FP32, 1) : rotate_token(r, token, FP32, 0);
    else
      r->backward ? rotate_token(r, token, BF16, 1) : rotate_token(r, token, BF16, 0);
  }
}

void rotate(const void *x, const float *cosine, const float *sine, void *out, int64_t tokens,
            int64_t heads, int64_t half, int type, int backward, int threads) {
  struct rotation work = {x, cosine, sine, out, tokens, heads, half, type, backward};
  in_parallel(rotate_task, &work, (tokens + TOKENS - 1) / TOKENS, threads);
}
