/* thread.h: how a rank's threads share a core.
 *
 * A rank has threads that compute for milliseconds and one that sends and receives for microseconds, often on
 * the same core. */
#ifndef AFD_BASE_THREAD_H
#define AFD_BASE_THREAD_H

/* The calling thread works little at a time and wants its turn soon: it asks the kernel for short slices, so
 * that it interrupts a thread that computes when it wakes, and comes back soon when it was interrupted. Its
 * share of a core stays the same, no privilege is needed, and a kernel that does not know it (Linux
 * before 6.12) ignores it.
 *
 * A batch policy for the threads that compute is no substitute: they then wait for a whole slice of whoever
 * else is on their core, and a hop on a busy machine took 2 to 8 ms instead of 0.1 to 0.6. */
void afd_thread_answers(void);

#endif
