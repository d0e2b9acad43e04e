#include "base/signals.h"

#include <signal.h>
#include <stddef.h>

static void do_nothing(int number)
{
    (void)number;
}

static void block(int how, int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(how, &set, NULL);
}

void afd_signals_hold(int number)
{
    block(SIG_BLOCK, number);
    signal(number, do_nothing);
}

void afd_signals_release(int number)
{
    block(SIG_UNBLOCK, number);
}
