/* The streams of this process: opened, read and lost. */
#pragma once
#include <stdint.h>
#include <stdio.h>

#include "histogram.h"

struct options {
    int port;
    int tls;
    int noread;                   /* read until the first block, then never again */
    int rcvbuf;                   /* SO_RCVBUF in bytes, 0 for the kernel's own */
    int source;                   /* the first source address is 127.0.0.<source> */
};
extern struct options options;

/* Streams that did not come to life, by the reason; none of them is tried again. */
struct failures {
    uint64_t refused;             /* ECONNREFUSED */
    uint64_t reset;               /* any other error of the socket, or of TLS */
    uint64_t status;              /* an answer other than 200 */
    uint64_t ended;               /* the server closed before a first block */
    uint64_t turned_away;         /* 200, and the first block was stream.close */
    uint64_t late;                /* not there when the time was up */
    uint64_t local;               /* this machine has no socket, port or memory for it */
};

struct progress {
    uint64_t wanted, begun, live, settled;   /* settled: live once, or failed */
    uint64_t lost;                /* were live, and were ended by the server */
    uint64_t retransmits;         /* of segments, until the first block: a full backlog shows here */
    uint64_t retransmitting;      /* streams that had any */
    int64_t opened_ns;            /* when the last stream settled */
    uint16_t odd_status;          /* an example of failures.status */
    struct failures failed;
    struct histogram handshake;   /* from connect() to the last byte of the first block */
};
extern struct progress progress;

/* Reads the targets: a path a line, and after it, each behind a tab, headers for it. */
void streams_load(const char *file);

/* Wants `count` more streams. */
void streams_want(uint64_t count);

/* Begins connections, at most some at a time and never with more than `ahead` under way; returns if any are left. */
int streams_begin(uint64_t ahead);

/* Waits up to `timeout` ms and reads what is there; returns whether stdin has something. */
int streams_turn(int timeout);

/* Gives up those that are not live yet. */
void streams_give_up(void);

/* Starts the gaps anew; counts each stream's longest time without a byte since then. */
void streams_reset_gaps(void);
void streams_gaps(struct histogram *);

void streams_start(void);
int64_t now_ns(void);
