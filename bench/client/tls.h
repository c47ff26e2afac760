/* TLS for streams, through OpenSSL; without its headers tls_start() says so and ends the process. */
#pragma once
#include <stddef.h>
#include <sys/types.h>

struct tls;                       /* an SSL */

/* Begins a client's handshake on a connected socket. */
struct tls *tls_start(int fd);

/* Goes on with the handshake: 1 when it is done, 0 when the socket has to be waited for (*wants_write says how), -1 when
 * it failed. */
int tls_handshake(struct tls *, int *wants_write);

/* As write() and read(); -1 with errno EAGAIN when there is nothing now. */
ssize_t tls_write(struct tls *, const void *, size_t);
ssize_t tls_read(struct tls *, void *, size_t);

void tls_drop(struct tls *);
