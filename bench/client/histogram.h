/* How often a time was seen, by its size: 128 buckets to each doubling, so a percentile is off by 0.8 % at most. */
#pragma once
#include <stdint.h>
#include <stdio.h>

enum { STEP_BITS = 7, BUCKETS = (64 - STEP_BITS) << STEP_BITS };

struct histogram {
    uint64_t count;
    int64_t longest;              /* ns, exact */
    uint32_t buckets[BUCKETS];
};

void histogram_clear(struct histogram *);

/* Counts one time in nanoseconds; one below zero counts as zero. */
void histogram_add(struct histogram *, int64_t ns);

/* Writes [[LEAST_NS, COUNT], ...] for the buckets that hold something. */
void histogram_print(const struct histogram *, FILE *);
