/* Numbered tasks, done by some threads. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINED static inline __attribute__((always_inline))

enum { MAX_THREADS = 64 };

struct team {
  void (*task)(void *work, int64_t number);
  void *work;
  int64_t count;
  _Atomic int64_t next;
};

static void *take_tasks(void *argument) {
  struct team *team = argument;
  int64_t number;
  while ((number = atomic_fetch_add(&team->next, 1)) < team->count) team->task(team->work, number);
  return NULL;
}

#ifdef __linux__
/* OpenMP's threads, which PyTorch has started and keeps; there are none before it is loaded. */
extern void GOMP_parallel(void (*task)(void *), void *work, unsigned threads, unsigned flags)
    __attribute__((weak));
static void take_tasks_in_turn(void *team) { take_tasks(team); }
#endif

/* Does tasks 0 .. count - 1, started in this order. Threads that can't be had are done without. */
static void in_parallel(void (*task)(void *, int64_t), void *work, int64_t count, int threads) {
  struct team team = {task, work, count, 0};
  pthread_t others[MAX_THREADS];
  int started = 0;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (threads > count) threads = (int)count;
#ifdef __linux__
  if (threads > 1 && GOMP_parallel) {
    GOMP_parallel(take_tasks_in_turn, &team, (unsigned)threads, 0);
    return;
  }
#endif
  while (started < threads - 1 && !pthread_create(&others[started], NULL, take_tasks, &team))
    started++;
  take_tasks(&team);
  for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
}
