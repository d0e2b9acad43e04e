/* signals.h: a signal between the start of a process and its handler, and after that handler. One thread,
 * before there are others. */
#ifndef AFD_BASE_SIGNALS_H
#define AFD_BASE_SIGNALS_H

/* Holds the signal back, and has it do nothing wherever nobody handles it: what comes before the handler that
 * is installed next reaches that handler once it is released, and what comes after the handler was taken away
 * (libevent puts back what was before it) is dropped. To ignore it instead would lose what comes meanwhile.
 */
void afd_signals_hold(int number);
void afd_signals_release(int number);

#endif
