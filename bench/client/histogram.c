#include "histogram.h"

#include <string.h>

enum { STEPS = 1 << STEP_BITS };

void histogram_clear(struct histogram *h) { memset(h, 0, sizeof *h); }

/* Times below STEPS have a bucket each; above, the exponent and the STEP_BITS bits after the leading one say which. */
static int bucket_of(uint64_t ns) {
    if (ns < STEPS) return (int)ns;
    int exponent = 63 - __builtin_clzll(ns);
    return ((exponent - STEP_BITS + 1) << STEP_BITS) + (int)((ns >> (exponent - STEP_BITS)) & (STEPS - 1));
}

static uint64_t least_of(int bucket) {
    if (bucket < STEPS) return (uint64_t)bucket;
    return (uint64_t)(STEPS + (bucket & (STEPS - 1))) << ((bucket >> STEP_BITS) - 1);
}

void histogram_add(struct histogram *h, int64_t ns) {
    if (ns < 0) ns = 0;
    h->count++;
    if (ns > h->longest) h->longest = ns;
    h->buckets[bucket_of((uint64_t)ns)]++;
}

void histogram_print(const struct histogram *h, FILE *out) {
    const char *comma = "";
    fputc('[', out);
    for (int i = 0; i < BUCKETS; i++) {
        if (!h->buckets[i]) continue;
        fprintf(out, "%s[%llu,%u]", comma, (unsigned long long)least_of(i), h->buckets[i]);
        comma = ",";
    }
    fputc(']', out);
}
