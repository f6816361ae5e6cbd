/* The guest's side: takes orders from a virtio-serial port, measures, and answers in JSON, a line each.
 *
 * guest ORDERS DATA PORT: the two virtio-serial ports, and where it accepts what the host connects. */

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/vm_sockets.h>

#include "workload.h"

#define HOST_BY_TCP "10.0.2.2" /* QEMU's user-mode network passes it on to the host's loopback */
#define CLIENTS 4              /* processes that connect at once */
#define BACKLOG 128
#define PATIENCE_SECONDS 20 /* a measurement that takes longer has failed; it is made to take a second at most */

static const char *data_port;

static int new_socket(int family) {
    int one = 1, fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0)
        err(1, "socket");
    if (family == AF_INET && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
        err(1, "TCP_NODELAY");
    return fd;
}

static int connect_to_host(const struct order *order) {
    int fd, failed;
    if (!strcmp(order->transport, "vsock")) {
        struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = order->port};
        fd = new_socket(AF_VSOCK);
        failed = connect(fd, (struct sockaddr *)&to, sizeof to);
    } else if (!strcmp(order->transport, "tcp")) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)order->port)};
        inet_pton(AF_INET, HOST_BY_TCP, &to.sin_addr);
        fd = new_socket(AF_INET);
        failed = connect(fd, (struct sockaddr *)&to, sizeof to);
    } else {
        fd = open(data_port, O_RDWR);
        failed = fd < 0;
    }
    if (failed)
        err(1, "connect by %s", order->transport);
    return fd;
}

static double transfer(const struct order *order) {
    struct command command = {.op = op_of(order), .size = order->size, .bytes = order->amount};
    char byte;
    int fd = connect_to_host(order);
    write_all(fd, &command, sizeof command);
    read_all(fd, &byte, 1);
    if (byte != READY)
        errx(1, "the host's program is not ready");
    const char go = GO;
    double started = now();
    write_all(fd, &go, 1);
    if (command.op == TO_HOST) {
        give(fd, command.bytes, command.size);
        read_all(fd, &byte, 1);
    } else if (command.op == TO_GUEST) {
        take(fd, command.bytes);
    } else {
        for (uint64_t left = command.bytes; left; left -= command.size) {
            write_all(fd, buffer, command.size);
            read_all(fd, buffer, command.size);
        }
    }
    double taken = now() - started;
    close(fd);
    return taken;
}

/* Connects to a program that accepts and closes, and waits for the end of the stream. */
static double connects(const struct order *order) {
    double started = now();
    for (int client = 0; client < CLIENTS; client++) {
        pid_t pid = fork();
        if (pid < 0)
            err(1, "fork");
        if (pid)
            continue;
        alarm(PATIENCE_SECONDS); /* is not inherited */
        for (uint64_t number = (uint64_t)client; number < order->amount; number += CLIENTS) {
            int fd = connect_to_host(order);
            char byte;
            if (read(fd, &byte, 1) != 0)
                err(1, "a stream without bytes did not end well");
            close(fd);
        }
        _exit(0);
    }
    for (int client = 0; client < CLIENTS; client++) {
        int status;
        if (wait(&status) < 0 || status)
            errx(1, "a client failed");
    }
    return now() - started;
}

/* In a process of its own: accepts and closes for ever. */
static void serve(int family, const struct sockaddr *address, socklen_t length) {
    if (fork())
        return;
    int one = 1, listener = new_socket(family);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, address, length) || listen(listener, BACKLOG))
        err(1, "listen");
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            err(1, "accept");
        close(fd);
    }
}

static void run(FILE *answers, const char *line) {
    struct order order = parse_order(line);
    int pipe_ends[2];
    char answer[128];
    if (pipe(pipe_ends))
        err(1, "pipe");
    /* in a process of its own, so that a failure is an answer too */
    pid_t pid = fork();
    if (!pid) {
        alarm(PATIENCE_SECONDS);
        double taken = strcmp(order.work, "connect") ? transfer(&order) : connects(&order);
        int count = snprintf(answer, sizeof answer, "{\"seconds\": %.9f}", taken);
        write_all(pipe_ends[1], answer, (size_t)count);
        _exit(0);
    }
    close(pipe_ends[1]);
    ssize_t count = read(pipe_ends[0], answer, sizeof answer - 1);
    close(pipe_ends[0]);
    if (pid < 0 || waitpid(pid, NULL, 0) != pid || count <= 0)
        count = snprintf(answer, sizeof answer, "{\"error\": \"it failed in the guest, or took too long\"}");
    fprintf(answers, "%.*s\n", (int)count, answer);
    fflush(answers);
}

int main(int count, char **words) {
    if (count != 4)
        errx(2, "usage: guest ORDERS DATA PORT");
    data_port = words[2];
    unsigned port = (unsigned)strtoul(words[3], NULL, 10);
    struct sockaddr_vm by_vsock = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    struct sockaddr_in by_tcp = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    serve(AF_VSOCK, (struct sockaddr *)&by_vsock, sizeof by_vsock);
    serve(AF_INET, (struct sockaddr *)&by_tcp, sizeof by_tcp);
    int orders = open(words[1], O_RDWR);
    FILE *in = fdopen(orders, "r"), *out = fdopen(dup(orders), "w");
    if (!in || !out)
        err(1, "%s", words[1]);
    fprintf(out, "{\"ready\": true}\n");
    fflush(out);
    for (char line[128]; fgets(line, sizeof line, in);)
        run(out, line);
    return 0;
}
