/* The host's side of every measurement, on whatever connection it is given.
 *
 * Standard input is a socket over which connections come (SCM_RIGHTS), one after another. */

#include <sys/socket.h>

#include "workload.h"

/* The next connection, or -1 when there are no more. */
static int next_connection(void) {
    char byte;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t count = recvmsg(STDIN_FILENO, &message, MSG_CMSG_CLOEXEC);
    if (count < 0)
        err(1, "recvmsg");
    if (!count)
        return -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS)
        errx(1, "no connection came");
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static void echo(int fd, uint64_t bytes, uint32_t size) {
    for (; bytes; bytes -= size) {
        read_all(fd, buffer, size);
        write_all(fd, buffer, size);
    }
}

static void obey(int fd, const struct command *command) {
    const char ready = READY, done = DONE;
    char go;
    if (!command->size || command->size > MAX_WRITE_BYTES)
        errx(1, "a write of %u bytes", command->size);
    write_all(fd, &ready, 1);
    read_all(fd, &go, 1);
    switch (command->op) {
    case TO_HOST:
        take(fd, command->bytes);
        write_all(fd, &done, 1);
        return;
    case TO_GUEST:
        give(fd, command->bytes, command->size);
        return;
    case ECHO:
        echo(fd, command->bytes, command->size);
        return;
    default:
        errx(1, "there is no command %u", command->op);
    }
}

int main(void) {
    for (int fd; (fd = next_connection()) >= 0; close(fd)) {
        struct command command;
        /* the first byte tells a further command from the end */
        while (read(fd, &command, 1) == 1) {
            read_all(fd, (char *)&command + 1, sizeof command - 1);
            obey(fd, &command);
        }
    }
    return 0;
}
