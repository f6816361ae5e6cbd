/* What the host's program, the guest's program and the fake driver have in common: the commands that begin
 * every measurement on a connection, and moving bytes.
 *
 * The guest's side sends a command, the host's program answers READY; the guest's side says GO, and its clock runs. */

#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum op {
    TO_HOST = 1,   /* the guest's side writes, the host's answers DONE at the end */
    TO_GUEST = 2,  /* the host's side writes */
    ECHO = 3,      /* the host's side sends every message back */
};

struct command {
    uint32_t op;
    uint32_t size; /* bytes of one write */
    uint64_t bytes; /* in all */
};

#define READY '+'
#define GO '>'
#define DONE '!'
#define MAX_WRITE_BYTES (1 << 20) /* largest write that is measured */
#define READ_BYTES (256 << 10)    /* asked for at once: as much as a Linux socket of a guest holds */

static uint8_t buffer[MAX_WRITE_BYTES];

/* Both end the program where the connection ends early; the other side sees it. */
static inline void write_all(int fd, const void *data, size_t count) {
    const uint8_t *at = data;
    while (count) {
        ssize_t done = write(fd, at, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            err(1, "write");
        at += done;
        count -= (size_t)done;
    }
}

static inline void read_all(int fd, void *data, size_t count) {
    uint8_t *at = data;
    while (count) {
        ssize_t done = read(fd, at, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            err(1, "read");
        if (!done)
            errx(1, "the connection ended early");
        at += done;
        count -= (size_t)done;
    }
}

/* Reads `bytes` in reads as large as they come. */
static inline void take(int fd, uint64_t bytes) {
    while (bytes) {
        size_t count = bytes < READ_BYTES ? (size_t)bytes : READ_BYTES;
        ssize_t done = read(fd, buffer, count);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            err(1, "read");
        if (!done)
            errx(1, "the connection ended early");
        bytes -= (uint64_t)done;
    }
}

/* Writes `bytes` in writes of `size`. */
static inline void give(int fd, uint64_t bytes, uint32_t size) {
    while (bytes) {
        size_t count = bytes < size ? (size_t)bytes : size;
        write_all(fd, buffer, count);
        bytes -= count;
    }
}

static inline double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* An order to a guest's program, one line: transport, port, what to do, size of a write, bytes or connects. */
struct order {
    char transport[16];
    unsigned port;
    char work[16];
    uint32_t size;
    uint64_t amount;
};

static inline struct order parse_order(const char *line) {
    struct order order;
    if (sscanf(line, "%15s %u %15s %u %lu", order.transport, &order.port, order.work, &order.size, &order.amount) != 5)
        errx(1, "not understood: %s", line);
    if (!order.size || order.size > MAX_WRITE_BYTES)
        errx(1, "writes have 1 to %d bytes, not %u", MAX_WRITE_BYTES, order.size);
    return order;
}

static inline uint32_t op_of(const struct order *order) {
    if (!strcmp(order->work, "to-host"))
        return TO_HOST;
    if (!strcmp(order->work, "to-guest"))
        return TO_GUEST;
    if (!strcmp(order->work, "echo"))
        return ECHO;
    errx(1, "there is no work %s", order->work);
}

#endif
