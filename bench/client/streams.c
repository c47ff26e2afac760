/* How it works: one epoll over all sockets, level-triggered. A socket is first written its request when it can be, then
 * read at each turn that it has something, once, into one common buffer. Nothing waits for any single stream. */
#define _GNU_SOURCE
#include "streams.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "body.h"
#include "tls.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { MOST = 19900, PER_ADDRESS = 8000, AT_A_TIME = 64, READY = 1024, BUFFER = 256 * 1024 };
enum state { UNUSED, CONNECTING, SECURING, ASKED, LIVE, OVER };

struct stream {
    int fd;
    uint8_t state;
    struct tls *tls;
    int64_t began, last, gap;     /* ns: connect(), the last byte, the longest time without one */
    struct body body;
};

struct options options = {.source = 2};
struct progress progress;

/* What a page's EventSource of another origin sends, shortened. */
static const char as_a_page[] = "Host: bench.example.com\r\nConnection: keep-alive\r\nAccept: text/event-stream\r\n"
                                "Cache-Control: no-cache\r\nOrigin: https://app.example.com\r\nUser-Agent: Mozilla/5.0\r\n";
static struct stream streams[MOST];
static struct { char *bytes; size_t length; } *requests;
static size_t request_count;
static int poller;

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void streams_load(const char *file) {
    FILE *in = fopen(file, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    if (!in) { perror(file); exit(2); }
    while ((length = getline(&line, &room, in)) > 0) {
        if (line[length - 1] == '\n') line[length - 1] = 0;
        char *rest = line, *path = strsep(&rest, "\t"), *header, *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);
        fprintf(out, "GET %s HTTP/1.1\r\n%s", path, as_a_page);
        while ((header = strsep(&rest, "\t"))) fprintf(out, "%s\r\n", header);
        fputs("\r\n", out);
        fclose(out);
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        requests[request_count].bytes = text;
        requests[request_count++].length = size;
    }
    free(line);
    fclose(in);
    if (!request_count) { fprintf(stderr, "%s: no targets\n", file); exit(2); }
}

void streams_start(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = MOST};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event)) { perror("epoll"); exit(1); }
}

void streams_want(uint64_t count) { progress.wanted += count; }

static void watch(struct stream *s, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(s - streams)};
    if (epoll_ctl(poller, operation, s->fd, &event)) { perror("epoll_ctl"); exit(1); }
}

static void release(struct stream *s, enum state state) {
    if (s->tls) tls_drop(s->tls);
    if (s->fd >= 0) close(s->fd);
    body_drop(&s->body);
    s->tls = NULL;
    s->fd = -1;
    s->state = (uint8_t)state;
}

static void settle(void) {
    progress.settled++;
    progress.opened_ns = now_ns();
}

static void fail(struct stream *s, uint64_t *reason) {
    (*reason)++;
    settle();
    release(s, OVER);
}

static void lose(struct stream *s) {
    progress.lost++;
    progress.live--;
    release(s, OVER);
}

/* A stream that is live is lost, one that is not has failed. */
static void broken(struct stream *s, uint64_t *reason) {
    if (s->state == LIVE) lose(s);
    else fail(s, reason);
}

static void begin(struct stream *s, uint64_t number) {
    int on = 1;
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)options.source - 1 + (uint32_t)number / PER_ADDRESS);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)options.port);
    memset(s, 0, sizeof *s);
    s->state = CONNECTING;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) { fail(s, &progress.failed.local); return; }
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (options.rcvbuf) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &options.rcvbuf, sizeof options.rcvbuf);
    if (bind(s->fd, (struct sockaddr *)&from, sizeof from)) { fail(s, &progress.failed.local); return; }
    s->began = now_ns();
    if (connect(s->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        fail(s, errno == ECONNREFUSED ? &progress.failed.refused
                : errno == EADDRNOTAVAIL ? &progress.failed.local : &progress.failed.reset);
        return;
    }
    watch(s, EPOLL_CTL_ADD, EPOLLOUT);
}

int streams_begin(uint64_t ahead) {
    static size_t place;          /* of the last stream that was begun */
    for (int i = 0; i < AT_A_TIME && progress.begun < progress.wanted; i++) {
        if (progress.begun - progress.settled >= ahead) return 1;
        size_t tries = 0;
        while (streams[place].state != UNUSED && streams[place].state != OVER && tries++ < MOST) place = (place + 1) % MOST;
        if (tries > MOST) { fputs("too many streams for one process\n", stderr); exit(1); }
        begin(&streams[place], progress.begun++);
        place = (place + 1) % MOST;
    }
    return progress.begun < progress.wanted;
}

static void ask(struct stream *s) {
    size_t which = (size_t)(s - streams) % request_count, length = requests[which].length;
    const char *bytes = requests[which].bytes;
    ssize_t sent = s->tls ? tls_write(s->tls, bytes, length) : send(s->fd, bytes, length, MSG_NOSIGNAL);
    if (sent != (ssize_t)length) { fail(s, &progress.failed.reset); return; }
    s->state = ASKED;
    watch(s, EPOLL_CTL_MOD, EPOLLIN);
}

static void secure(struct stream *s) {
    int wants_write = 0;
    switch (tls_handshake(s->tls, &wants_write)) {
    case 1: ask(s); break;
    case 0: watch(s, EPOLL_CTL_MOD, wants_write ? EPOLLOUT : EPOLLIN); break;
    default: fail(s, &progress.failed.reset);
    }
}

static void connected(struct stream *s) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail(s, error == ECONNREFUSED ? &progress.failed.refused : &progress.failed.reset);
    } else if (options.tls) {
        s->tls = tls_start(s->fd);
        s->state = SECURING;
        secure(s);
    } else {
        ask(s);
    }
}

static void came_alive(struct stream *s, int64_t now) {
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (!getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &info, &size) && info.tcpi_total_retrans) {
        progress.retransmits += info.tcpi_total_retrans;
        progress.retransmitting++;
    }
    histogram_add(&progress.handshake, now - s->began);
    s->state = LIVE;
    s->last = now;
    progress.live++;
    settle();
    if (options.noread) watch(s, EPOLL_CTL_DEL, 0);
}

/* Returns whether there may be more to read at once: OpenSSL may hold what epoll does not see. */
static int take(struct stream *s) {
    static char buffer[BUFFER];
    size_t room = options.noread ? 4096 : sizeof buffer;
    ssize_t size = s->tls ? tls_read(s->tls, buffer, room) : recv(s->fd, buffer, room, 0);
    int64_t now = now_ns();
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (size <= 0) { broken(s, size ? &progress.failed.reset : &progress.failed.ended); return 0; }
    if (s->state == LIVE && now - s->last > s->gap) s->gap = now - s->last;
    s->last = now;
    int outcome = body_feed(&s->body, buffer, (size_t)size, now);
    if (s->body.status && s->body.status != 200 && s->state != LIVE) {
        progress.odd_status = s->body.status;
        fail(s, &progress.failed.status);
        return 0;
    }
    if (s->state != LIVE && s->body.closing) { fail(s, &progress.failed.turned_away); return 0; }
    if (s->state != LIVE && s->body.greeted) came_alive(s, now);
    if (outcome == BODY_OK) return s->tls != NULL && !(options.noread && s->state == LIVE);
    broken(s, outcome == BODY_BAD ? &progress.failed.status : &progress.failed.ended);
    return 0;
}

int streams_turn(int timeout) {
    static struct epoll_event ready[READY];
    int commands = 0, count = epoll_wait(poller, ready, READY, timeout);
    for (int i = 0; i < count; i++) {
        if (ready[i].data.u32 == MOST) { commands = 1; continue; }
        struct stream *s = &streams[ready[i].data.u32];
        if (s->state == CONNECTING) connected(s);
        else if (s->state == SECURING) secure(s);
        else while (s->state != OVER && take(s)) continue;
    }
    return commands;
}

void streams_give_up(void) {
    for (struct stream *s = streams; s < streams + MOST; s++)
        if (s->state == CONNECTING || s->state == SECURING || s->state == ASKED) fail(s, &progress.failed.late);
    progress.failed.late += progress.wanted - progress.begun;
    progress.settled += progress.wanted - progress.begun;
    progress.begun = progress.wanted;
}

void streams_reset_gaps(void) {
    int64_t now = now_ns();
    for (struct stream *s = streams; s < streams + MOST; s++) {
        s->gap = 0;
        s->last = now;
    }
}

void streams_gaps(struct histogram *gaps) {
    int64_t now = now_ns();
    for (struct stream *s = streams; s < streams + MOST; s++)
        if (s->state == LIVE) histogram_add(gaps, now - s->last > s->gap ? now - s->last : s->gap);
}
