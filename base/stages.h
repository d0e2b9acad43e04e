/* stages.h: where a rank's time goes.
 *
 * At each moment the device's time line is in exactly one stage; if several descriptions fit, the first in
 * the order of the enum wins: compute  the device executes work group    the device waits for a collective
 * inside its instance send     the device is free, and a message is being handed to the transport wait every
 * live slot (attention) or every expected message (FFN) is out at other ranks bubble   the device is idle
 * although a slot or a message is ready idle     nothing is in flight Plain struct, no allocation, one
 * thread. The sum over the stages is the time since `afd_stages_init`. */
#ifndef AFD_BASE_STAGES_H
#define AFD_BASE_STAGES_H

#include "base/clock.h"

enum afd_stage {
    AFD_STAGE_COMPUTE,
    AFD_STAGE_GROUP,
    AFD_STAGE_SEND,
    AFD_STAGE_WAIT,
    AFD_STAGE_BUBBLE,
    AFD_STAGE_IDLE,
    AFD_STAGE_COUNT
};

struct afd_stages {
    afd_ns total[AFD_STAGE_COUNT];
    enum afd_stage now;
    afd_ns since;
};

const char *afd_stage_name(enum afd_stage stage);
void afd_stages_init(struct afd_stages *stages, afd_ns now); /* begins in idle */
void afd_stages_enter(struct afd_stages *stages, enum afd_stage stage, afd_ns now);
/* Moves `ns` that were counted for the current or last stage to `stage`: a device reports the time it really
 * computed only when it is done. Never makes a total negative. */
void afd_stages_move(struct afd_stages *stages, enum afd_stage from, enum afd_stage to, afd_ns ns);

#endif
