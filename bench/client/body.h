/* From the bytes of an HTTP answer to counted events. Knows nothing of sockets. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "histogram.h"

/* What all streams of this process got since the last reset. */
struct tally {
    uint64_t events;              /* blocks with data, but for the server's own */
    uint64_t own;                 /* blocks of an event type stream.*, but for these two: */
    uint64_t gaps, closes;        /* stream.gap, stream.close */
    uint64_t comments;            /* lines that begin with a colon: heartbeats */
    uint64_t bytes;               /* of the answers as they came, heads and framing included */
    int64_t last_event_ns;        /* when the last event came, on the monotonic clock */
    struct histogram latency;     /* from an event's stamp to the read of its last byte */
};
extern struct tally tally;

enum phase { HEAD, SIZE, DATA, DATA_END, PLAIN, FINISHED };

/* One answer. All zero is its start. */
struct body {
    uint8_t phase;
    uint8_t skipping;             /* the rest of a line whose beginning was looked at already */
    uint8_t has_data, kind;       /* of the block under way */
    uint8_t greeted;              /* a whole block has come */
    uint8_t closing;              /* stream.close has come */
    uint16_t status;              /* 0 until the head is whole */
    uint64_t left;                /* bytes of the chunk, or of its size so far */
    int64_t stamp;                /* of the block under way, 0 without one */
    char *cut;                    /* the beginning of a line that the network cut, or of the head */
    uint32_t cut_length;
};

enum { BODY_OK = 0, BODY_ENDED = 1, BODY_BAD = -1 };

/* Takes what one read gave at `now`. Returns BODY_ENDED when the answer is over (the last chunk came) and BODY_BAD for
 * what is no HTTP answer. */
int body_feed(struct body *, const char *bytes, size_t length, int64_t now);

/* Frees what it holds. */
void body_drop(struct body *);
