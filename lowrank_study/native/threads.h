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

/* Does tasks 0 .. count - 1, started in this order. Threads that can't be had are done without. */
static void in_parallel(void (*task)(void *, int64_t), void *work, int64_t count, int threads) {
  struct team team = {task, work, count, 0};
  pthread_t others[MAX_THREADS];
  int started = 0;
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  if (threads > count) threads = (int)count;
  while (started < threads - 1 && !pthread_create(&others[started], NULL, take_tasks, &team))
    started++;
  take_tasks(&team);
  for (int i = 0; i < started; i++) pthread_join(others[i], NULL);
}
