/* thread.h: how the threads of a rank share a core.
 *
 * A rank has threads that compute for milliseconds and one that sends and receives for microseconds, often on
 * the same core. The scheduler's default treats them alike, and lets a loop that was interrupted wait for a
 * whole slice (3 or 4 ms) of the thread that computes. Neither call needs a privilege or changes a thread's
 * share of a core; where the kernel refuses, nothing changes. */
#ifndef AFD_BASE_THREAD_H
#define AFD_BASE_THREAD_H

/* The calling thread computes: it does not interrupt others when it wakes, and those that wake interrupt it.
 */
void afd_thread_computes(void);
/* The calling thread answers: it works little at a time, and wants its turn soon. */
void afd_thread_answers(void);

#endif
