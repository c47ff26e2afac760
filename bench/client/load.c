/* The load client: one process that holds many streams and counts what arrives.
 *
 * usage: load PORT TARGETS [tls=1] [noread=1] [rcvbuf=BYTES] [source=N]
 *
 * TARGETS is a file: a path a line, then headers, each behind a tab. Streams take the lines in turn. It reads all the
 * time, and takes one command a line on stdin; each has one line of JSON as its answer:
 *
 *   open COUNT AHEAD SECONDS  opens COUNT more, at most AHEAD of them under way, and answers once all are live or failed;
 *                             those that are not live after SECONDS have failed
 *   reset                     counts events, latencies and gaps from now on
 *   await EVENTS SECONDS      answers once so many events came since the reset, or the time is up
 *   stats                     all figures
 *
 * Times in answers are nanoseconds, those of a moment on the monotonic clock. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <signal.h>
#include <unistd.h>

#include "body.h"
#include "streams.h"

static struct { enum { NOTHING, OPENING, AWAITING } what; uint64_t events, ahead; int64_t deadline; } job;

static void print_failures(void) {
    const struct failures *f = &progress.failed;
    printf("\"failed\":{\"refused\":%lu,\"reset\":%lu,\"status\":%lu,\"ended\":%lu,\"turned_away\":%lu,\"late\":%lu,"
           "\"local\":%lu},\"odd_status\":%u",
           f->refused, f->reset, f->status, f->ended, f->turned_away, f->late, f->local, progress.odd_status);
}

static void answer_opened(void) {
    printf("{\"live\":%lu,\"lost\":%lu,\"at\":%ld,\"retransmits\":%lu,\"retransmitting\":%lu,", progress.live,
           progress.lost, progress.opened_ns, progress.retransmits, progress.retransmitting);
    print_failures();
    fputs(",\"handshake\":", stdout);
    histogram_print(&progress.handshake, stdout);
    printf(",\"handshake_longest\":%ld}\n", progress.handshake.longest);
}

static void answer_awaited(int64_t now) {
    printf("{\"events\":%lu,\"at\":%ld,\"lost\":%lu}\n", tally.events,
           tally.events >= job.events ? tally.last_event_ns : now, progress.lost);
}

static void answer_stats(void) {
    static struct histogram gaps;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    histogram_clear(&gaps);
    streams_gaps(&gaps);
    printf("{\"live\":%lu,\"lost\":%lu,\"events\":%lu,\"own\":%lu,\"gaps\":%lu,\"closes\":%lu,"
           "\"comments\":%lu,\"bytes\":%lu,\"at\":%ld,\"cpu\":%ld,",
           progress.live, progress.lost, tally.events, tally.own, tally.gaps, tally.closes,
           tally.comments, tally.bytes, tally.last_event_ns,
           (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000L + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000L);
    print_failures();
    fputs(",\"latency\":", stdout);
    histogram_print(&tally.latency, stdout);
    printf(",\"latency_longest\":%ld,\"silence\":", tally.latency.longest);
    histogram_print(&gaps, stdout);
    printf(",\"silence_longest\":%ld}\n", gaps.longest);
}

static void run(const char *line) {
    uint64_t count;
    double seconds;
    if (sscanf(line, "open %lu %lu %lf", &count, &job.ahead, &seconds) == 3) {
        streams_want(count);
        job.what = OPENING;
    } else if (sscanf(line, "await %lu %lf", &job.events, &seconds) == 2) {
        job.what = AWAITING;
    } else if (strcmp(line, "reset") == 0) {
        memset(&tally, 0, sizeof tally);
        streams_reset_gaps();
        puts("{}");
        return;
    } else if (strcmp(line, "stats") == 0) {
        answer_stats();
        return;
    } else {
        fprintf(stderr, "no such command: %s\n", line);
        exit(2);
    }
    job.deadline = now_ns() + (int64_t)(seconds * 1e9);
}

/* Reads what stdin has, and runs each whole line. Ends the process with its stdin. */
static void read_commands(void) {
    static char buffer[4096];
    static size_t length;
    ssize_t size = read(STDIN_FILENO, buffer + length, sizeof buffer - length - 1);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) exit(0);
    length += (size_t)size;
    char *line = buffer, *end;
    while ((end = memchr(line, '\n', length - (size_t)(line - buffer)))) {
        *end = 0;
        run(line);
        line = end + 1;
    }
    length -= (size_t)(line - buffer);
    memmove(buffer, line, length);
}

/* Answers the job under way if it is done. */
static void look_at_job(void) {
    if (job.what == NOTHING) return;
    int64_t now = now_ns();
    int is_late = now >= job.deadline;
    if (job.what == AWAITING) {
        if (tally.events < job.events && !is_late) return;
        answer_awaited(now);
    } else {
        if (progress.settled < progress.wanted && !is_late) return;
        if (is_late) streams_give_up();
        answer_opened();
    }
    job.what = NOTHING;
}

int main(int argc, char **argv) {
    if (argc < 3) { fputs("usage: load PORT TARGETS [KEY=VALUE ...]\n", stderr); return 2; }
    options.port = atoi(argv[1]);
    for (int i = 3; i < argc; i++)
        if (sscanf(argv[i], "tls=%d", &options.tls) != 1 && sscanf(argv[i], "noread=%d", &options.noread) != 1
            && sscanf(argv[i], "rcvbuf=%d", &options.rcvbuf) != 1 && sscanf(argv[i], "source=%d", &options.source) != 1) {
            fprintf(stderr, "no such option: %s\n", argv[i]);
            return 2;
        }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    streams_load(argv[2]);
    streams_start();
    for (;;) {
        int more = job.what == OPENING && streams_begin(job.ahead) && progress.begun - progress.settled < job.ahead;
        if (streams_turn(more ? 0 : job.what == NOTHING ? -1 : 20)) read_commands();
        look_at_job();
        fflush(stdout);
    }
}
