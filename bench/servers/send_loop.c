/* The physical limit of fan-out: one process, one bare send() per stream and event.
 *
 * usage: send_loop PORT
 * stdin, one command per line:   wait N      accept until N streams are connected
 *                                send LEN    send the LEN bytes that follow the line to every stream
 * It answers "ok" when a command is done. It neither parses nor frames: whatever a server does more is
 * what the comparison shows.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 60000
static int streams[MOST];
static int count;

static void accept_until(int listener, int wanted) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                               "3\r\n:\n\n\r\n";
    char request[4096];
    while (count < wanted && count < MOST) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) { perror("accept"); exit(1); }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (recv(fd, request, sizeof request, 0) <= 0) { close(fd); continue; }
        send(fd, head, sizeof head - 1, MSG_NOSIGNAL);
        streams[count++] = fd;
    }
}

int main(int argc, char **argv) {
    struct rlimit files = {MOST + 64, MOST + 64};
    struct sockaddr_in address = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, length, wanted;
    char line[128];
    static char event[1 << 20];

    if (argc != 2) { fprintf(stderr, "usage: send_loop PORT\n"); return 2; }
    if (setrlimit(RLIMIT_NOFILE, &files) != 0) {
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    address.sin_port = htons(atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("listen");
        return 1;
    }
    puts("ok");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "wait %d", &wanted) == 1) {
            accept_until(listener, wanted);
        } else if (sscanf(line, "send %d", &length) == 1 && length > 0 && length <= (int)sizeof event) {
            if (fread(event, 1, length, stdin) != (size_t)length) return 1;
            for (int i = 0; i < count; i++)
                send(streams[i], event, length, MSG_NOSIGNAL);
        }
        puts("ok");
        fflush(stdout);
    }
    return 0;
}
