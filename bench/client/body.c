/* How it works: the head is gathered until it is whole. After it, chunks are unwrapped, and their bytes are split into
 * lines. Of a line only its first LOOK bytes are ever looked at, and only a line that two reads share is copied; all else
 * is one memchr for its end. A block with data is counted at its blank line, at the time of the read that brought it. */
#define _GNU_SOURCE
#include "body.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LOOK = 512, HEAD_MOST = 8192 };
enum { PLAIN_EVENT, OWN, GAP, CLOSE };

struct tally tally;

static int starts(const char *line, size_t length, const char *word) {
    size_t size = strlen(word);
    return length >= size && memcmp(line, word, size) == 0;
}

static void end_block(struct body *b, int64_t now) {
    b->greeted = 1;
    if (b->has_data) {
        switch (b->kind) {
        case GAP: tally.gaps++; break;
        case CLOSE: tally.closes++; b->closing = 1; break;
        case OWN: tally.own++; break;
        default:
            tally.events++;
            tally.last_event_ns = now;
            if (b->stamp) histogram_add(&tally.latency, now - b->stamp);
        }
    }
    b->has_data = b->kind = 0;
    b->stamp = 0;
}

/* Looks at a line without its LF; of a long one at its beginning. */
static void look(struct body *b, const char *line, size_t length, int64_t now) {
    if (length && line[length - 1] == '\r') length--;
    if (length == 0) {
        end_block(b, now);
    } else if (line[0] == 'd') {
        b->has_data = 1;
        const char *found = memmem(line, length, "\"t\":", 4);
        if (!found) return;
        int64_t stamp = 0;
        for (found += 4; found < line + length && *found >= '0' && *found <= '9'; found++)
            stamp = stamp * 10 + (*found - '0');
        b->stamp = stamp;
    } else if (line[0] == ':') {
        tally.comments++;
    } else if (starts(line, length, "event: stream.")) {
        b->kind = starts(line, length, "event: stream.gap") ? GAP : starts(line, length, "event: stream.close") ? CLOSE : OWN;
    }
}

static void keep(struct body *b, const char *bytes, size_t length, size_t most) {
    if (!b->cut) b->cut = malloc(most);
    if (!b->cut) abort();
    memcpy(b->cut + b->cut_length, bytes, length);
    b->cut_length += length;
}

void body_drop(struct body *b) {
    free(b->cut);
    b->cut = NULL;
    b->cut_length = 0;
}

static void lines(struct body *b, const char *p, size_t length, int64_t now) {
    const char *end = p + length;
    while (p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t size = (size_t)((newline ? newline : end) - p);
        if (b->skipping) {
            b->skipping = !newline;
        } else if (newline && !b->cut_length) {
            look(b, p, size < LOOK ? size : LOOK, now);
        } else {
            size_t room = LOOK - b->cut_length;
            keep(b, p, size < room ? size : room, LOOK);
            if (newline || b->cut_length == LOOK) {
                look(b, b->cut, b->cut_length, now);
                body_drop(b);
                b->skipping = !newline;
            }
        }
        if (!newline) return;
        p = newline + 1;
    }
}

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* RFC 9112, 7.1. A chunk extension or a trailer is more than any of the servers here sends. */
static int chunks(struct body *b, const char *p, size_t length, int64_t now) {
    const char *end = p + length;
    while (p < end) {
        if (b->phase == SIZE) {
            char c = *p++;
            if (c == '\r') continue;
            if (c != '\n') {
                if (hex(c) < 0) return BODY_BAD;
                b->left = b->left << 4 | (uint64_t)hex(c);
            } else if (b->left == 0) {
                b->phase = FINISHED;
                return BODY_ENDED;
            } else {
                b->phase = DATA;
            }
        } else if (b->phase == DATA) {
            size_t size = (size_t)(end - p) < b->left ? (size_t)(end - p) : (size_t)b->left;
            lines(b, p, size, now);
            p += size;
            b->left -= size;
            if (!b->left) b->phase = DATA_END;
        } else if (*p++ == '\n') {
            b->phase = SIZE;
        }
    }
    return BODY_OK;
}

/* Returns how long the head is, or 0 when it is not whole yet; sets status and phase. */
static size_t read_head(struct body *b, char *head, size_t length) {
    const char *end = memmem(head, length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t size = (size_t)(end - head);
    if (size < 12 || memcmp(head, "HTTP/1.", 7) != 0) {
        b->status = 1;
        return size + 4;
    }
    b->status = (uint16_t)atoi(head + 9);
    b->phase = PLAIN;
    for (const char *p = head; p && p < end; p = memchr(p, '\n', (size_t)(end - p)), p = p ? p + 1 : p)
        if ((size_t)(end - p) >= 26 && strncasecmp(p, "transfer-encoding: chunked", 26) == 0) b->phase = SIZE;
    return size + 4;
}

int body_feed(struct body *b, const char *bytes, size_t length, int64_t now) {
    tally.bytes += length;
    if (b->phase == HEAD) {
        size_t before = b->cut_length;
        size_t take = length < HEAD_MOST - before ? length : HEAD_MOST - before;
        keep(b, bytes, take, HEAD_MOST);
        size_t head = read_head(b, b->cut, b->cut_length);
        if (!head) return b->cut_length == HEAD_MOST ? BODY_BAD : BODY_OK;
        body_drop(b);
        if (b->status != 200) return b->status == 1 ? BODY_BAD : BODY_OK;
        bytes += head - before;
        length -= head - before;
    }
    if (b->phase == PLAIN) {
        lines(b, bytes, length, now);
        return BODY_OK;
    }
    return chunks(b, bytes, length, now);
}
