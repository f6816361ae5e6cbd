#include "front_end.h"

#include <err.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

enum request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
    SET_STATUS = 39,
    GET_STATUS = 40,
};

#define VERSION 1u
#define FLAG_REPLY 4u
#define FLAG_NEED_REPLY 8u
#define F_PROTOCOL_FEATURES 30
#define P_MQ 0
#define P_REPLY_ACK 3
#define P_CONFIG 9
#define P_STATUS 16
#define STATUS_STARTED 8
#define MAX_REGIONS 8

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct {
            uint32_t index, number;
        } state;
        struct {
            uint32_t index, flags;
            uint64_t descriptors, used, available, log;
        } addresses;
        struct {
            uint32_t count, padding;
            struct {
                uint64_t guest_address, size, user_address, offset;
            } regions[MAX_REGIONS];
        } memory;
        struct {
            uint32_t offset, size, flags;
            uint8_t data[8];
        } __attribute__((packed)) config;
    } __attribute__((packed)) payload;
} __attribute__((packed));

#define HEADER_BYTES offsetof(struct message, payload)

static int device;

static void transmit(enum request request, struct message *message, uint32_t size, uint32_t flags, const int *fds,
                     unsigned count) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MAX_REGIONS * sizeof(int))];
    } control = {0};
    struct iovec piece = {.iov_base = message, .iov_len = HEADER_BYTES + size};
    struct msghdr whole = {.msg_iov = &piece, .msg_iovlen = 1};
    message->request = request;
    message->flags = VERSION | flags;
    message->size = size;
    if (count) {
        whole.msg_control = &control;
        whole.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    }
    if (sendmsg(device, &whole, 0) != (ssize_t)piece.iov_len)
        err(1, "request %d", request);
}

static void receive(enum request request, struct message *message) {
    if (recv(device, message, HEADER_BYTES, MSG_WAITALL) != (ssize_t)HEADER_BYTES)
        errx(1, "the device does not answer request %d", request);
    if (message->request != request || !(message->flags & FLAG_REPLY) || message->size > sizeof message->payload)
        errx(1, "the device answers request %d by something else", request);
    if (recv(device, &message->payload, message->size, MSG_WAITALL) != (ssize_t)message->size)
        errx(1, "the device's answer to request %d is short", request);
}

static uint64_t get(enum request request) {
    struct message message;
    transmit(request, &message, 0, 0, NULL, 0);
    receive(request, &message);
    return message.payload.number;
}

static void set(enum request request, uint64_t number) {
    struct message message = {.payload.number = number};
    transmit(request, &message, 8, 0, NULL, 0);
}

static void set_state(enum request request, uint32_t index, uint32_t number) {
    struct message message = {.payload.state = {index, number}};
    transmit(request, &message, 8, 0, NULL, 0);
}

static void set_eventfd(enum request request, uint64_t index, int fd) {
    struct message message = {.payload.number = index};
    transmit(request, &message, 8, 0, &fd, 1);
}

static void set_calls(const struct queue_place *queues) {
    for (uint32_t index = 0; index < QUEUES; index++)
        set_eventfd(SET_VRING_CALL, index, queues[index].call);
}

static void set_memory(int memfd, const struct region *regions, unsigned count, bool wait) {
    struct message message = {.payload.memory.count = count};
    int fds[MAX_REGIONS];
    for (unsigned index = 0; index < count; index++) {
        memcpy(&message.payload.memory.regions[index], &regions[index], sizeof regions[index]);
        fds[index] = memfd;
    }
    transmit(SET_MEM_TABLE, &message, 8 + 32 * count, wait ? FLAG_NEED_REPLY : 0, fds, count);
    if (wait) {
        receive(SET_MEM_TABLE, &message);
        if (message.payload.number)
            errx(1, "the device refuses the memory");
    }
}

static void connect_device(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    device = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (device < 0 || connect(device, (struct sockaddr *)&address, sizeof address))
        err(1, "%s", path);
}

/* What QEMU sends when the device is made; returns the protocol's features in use. */
static uint64_t realize(const struct queue_place *queues, uint64_t *features, uint64_t *guest_cid) {
    const uint64_t required = 1ull << VIRTIO_F_VERSION_1 | 1ull << F_PROTOCOL_FEATURES;
    const uint64_t wanted = required | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
                            1ull << VIRTIO_VSOCK_F_SEQPACKET;
    struct message message = {.payload.config = {.size = 8}};
    get(GET_FEATURES);
    uint64_t protocol = get(GET_PROTOCOL_FEATURES);
    if (!(protocol & 1ull << P_CONFIG))
        errx(1, "the device lacks CONFIG");
    protocol &= 1ull << P_MQ | 1ull << P_REPLY_ACK | 1ull << P_CONFIG | 1ull << P_STATUS;
    set(SET_PROTOCOL_FEATURES, protocol);
    if (protocol & 1ull << P_MQ && get(GET_QUEUE_NUM) < QUEUES)
        errx(1, "the device has too few queues");
    transmit(SET_OWNER, &message, 0, 0, NULL, 0);
    *features = get(GET_FEATURES) & wanted;
    if (required & ~*features)
        errx(1, "the device lacks features: %#lx", *features);
    for (uint32_t index = 0; index < QUEUES; index++) {
        set_eventfd(SET_VRING_CALL, index, queues[index].call);
        set_eventfd(SET_VRING_ERR, index, queues[index].err);
    }
    message.payload.config.offset = message.payload.config.flags = 0;
    message.payload.config.size = 8;
    transmit(GET_CONFIG, &message, 12 + 8, 0, NULL, 0);
    receive(GET_CONFIG, &message);
    memcpy(guest_cid, message.payload.config.data, 8);
    return protocol;
}

uint64_t start_device(const char *socket_path, int memfd, const struct region *regions, unsigned count,
                      const struct queue_place *queues, uint64_t *guest_cid) {
    uint64_t features;
    connect_device(socket_path);
    uint64_t protocol = realize(queues, &features, guest_cid);
    set_calls(queues);
    set(SET_FEATURES, features);
    if (protocol & 1ull << P_STATUS) {
        get(GET_STATUS);
        set(SET_STATUS, STATUS_STARTED);
    }
    set_memory(memfd, regions, count, protocol & 1ull << P_REPLY_ACK);
    for (uint32_t index = 0; index < QUEUES; index++) {
        const struct queue_place *queue = &queues[index];
        struct message message = {
            .payload.addresses = {index, 0, queue->descriptors, queue->used, queue->available, 0}};
        set_state(SET_VRING_NUM, index, QUEUE_SIZE);
        set_state(SET_VRING_BASE, index, 0);
        transmit(SET_VRING_ADDR, &message, sizeof message.payload.addresses, 0, NULL, 0);
        set_eventfd(SET_VRING_KICK, index, queue->kick);
    }
    for (uint32_t index = 0; index < QUEUES; index++)
        set_state(SET_VRING_ENABLE, index, 1);
    set_calls(queues);
    return features;
}
