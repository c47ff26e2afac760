#include "tls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>

static SSL_CTX *context(void) {
    static SSL_CTX *made;
    if (!made) {
        made = SSL_CTX_new(TLS_client_method());
        if (!made) abort();
        SSL_CTX_set_verify(made, SSL_VERIFY_NONE, NULL);   /* the servers' certificates are made for one run */
        SSL_CTX_set_read_ahead(made, 1);                   /* one recv() a record, not two */
        SSL_CTX_set_mode(made, SSL_MODE_RELEASE_BUFFERS);
    }
    return made;
}

struct tls *tls_start(int fd) {
    SSL *ssl = SSL_new(context());
    if (!ssl || !SSL_set_fd(ssl, fd)) abort();
    SSL_set_connect_state(ssl);
    return (struct tls *)ssl;
}

int tls_handshake(struct tls *tls, int *wants_write) {
    ERR_clear_error();
    int done = SSL_do_handshake((SSL *)tls);
    if (done == 1) return 1;
    int why = SSL_get_error((SSL *)tls, done);
    *wants_write = why == SSL_ERROR_WANT_WRITE;
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static ssize_t outcome(SSL *ssl, int size) {
    if (size > 0) return size;
    switch (SSL_get_error(ssl, size)) {
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    default: errno = ECONNRESET; return -1;
    }
}

ssize_t tls_write(struct tls *tls, const void *bytes, size_t length) {
    ERR_clear_error();
    return outcome((SSL *)tls, SSL_write((SSL *)tls, bytes, (int)length));
}

ssize_t tls_read(struct tls *tls, void *buffer, size_t size) {
    ERR_clear_error();
    return outcome((SSL *)tls, SSL_read((SSL *)tls, buffer, (int)size));
}

void tls_drop(struct tls *tls) { SSL_free((SSL *)tls); }

#else

struct tls *tls_start(int fd) {
    (void)fd;
    fputs("built without OpenSSL: apt-get install libssl-dev\n", stderr);
    exit(3);
}
int tls_handshake(struct tls *tls, int *wants_write) { (void)tls, (void)wants_write; return -1; }
ssize_t tls_write(struct tls *tls, const void *bytes, size_t length) { (void)tls, (void)bytes, (void)length; return -1; }
ssize_t tls_read(struct tls *tls, void *buffer, size_t size) { (void)tls, (void)buffer, (void)size; return -1; }
void tls_drop(struct tls *tls) { (void)tls; }

#endif
