/* A guest's virtio-vsock driver without a guest, which measures a device by itself.
 *
 * driver SOCKET SERVE_PORT sleep|poll: it is QEMU to the vhost-user device at SOCKET, and does to the queues what
 * Linux 6.12 does: one descriptor for header and data, packets of at most 64 KiB, receive buffers of 3,776 bytes
 * that are offered again when half of them are used, 256 KiB of room for each socket, and a credit update when
 * the socket is read empty. It takes orders on its standard input and answers in JSON, a line each. `sleep` waits
 * for the device's interrupts as a guest does, `poll` looks at the queues all the time. */

#define _GNU_SOURCE
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "front_end.h"
#include "workload.h"

#define RX 0
#define TX 1
#define RX_BUFFER_BYTES 3776 /* SKB_WITH_OVERHEAD(4096) of x86-64; the header is in it */
#define RX_STRIDE 4096
#define MAX_PAYLOAD (64 << 10)
#define TX_STRIDE (MAX_PAYLOAD + 4096)
#define SOCKET_ROOM (256 << 10)
#define KEPT_FOR_CONTROL 8 /* slots of the tx queue that data do not take */
#define BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)
#define WINDOW 8           /* connects under way at once */
#define FIRST_PORT 0x10000
#define PATIENCE_MS 20000 /* without a sign of the device */

/* Guest memory as a PC with 512 MiB has it: a little below 640 KiB, the rest from 768 KiB on. */
#define LOW_BYTES 0xA0000ull
#define HIGH_ADDRESS 0xC0000ull
#define HIGH_BYTES ((uint64_t)(QUEUE_SIZE * (TX_STRIDE + RX_STRIDE)) + (1 << 20))
#define USER_ADDRESS 0x7f0000000000ull
#define RINGS_BYTES 0x10000 /* the rings come first, then the rx buffers, then the tx buffers */

struct queue {
    struct vring ring;
    uint16_t available, offered_at_kick, taken;
    uint16_t free[QUEUE_SIZE], free_count;
    struct queue_place place;
};

enum state { CLOSED, REQUESTED, OPEN, SHUT };

struct connection {
    enum state state;
    uint32_t port, peer_port;
    uint32_t sent, peer_room, peer_passed_on;
    uint32_t passed_on, told;
    uint64_t received;
    uint8_t last_byte;
};

static uint8_t *high;
static uint64_t guest_cid, features;
static bool polls;
static struct queue queues[QUEUES];
static struct connection connections[WINDOW];
static uint32_t serve_port;
static uint64_t ended; /* connects */
static uint64_t packets_out, packets_in, bad_packets, kicks, interrupts;

static void count_anew(void) {
    packets_out = packets_in = bad_packets = kicks = interrupts = 0;
}

static bool event_idx(void) {
    return features >> VIRTIO_RING_F_EVENT_IDX & 1;
}

static uint64_t address_of(const void *at) {
    return HIGH_ADDRESS + (uint64_t)((const uint8_t *)at - high);
}

static uint8_t *rx_buffer(unsigned slot) {
    return high + RINGS_BYTES + (uint64_t)slot * RX_STRIDE;
}

static uint8_t *tx_buffer(unsigned slot) {
    return high + RINGS_BYTES + (uint64_t)QUEUE_SIZE * RX_STRIDE + (uint64_t)slot * TX_STRIDE;
}

/* -- queues */

static void offer(struct queue *queue, uint16_t slot, const void *at, uint32_t length, uint16_t flags) {
    queue->ring.desc[slot] = (struct vring_desc){.addr = address_of(at), .len = length, .flags = flags};
    queue->ring.avail->ring[queue->available++ % QUEUE_SIZE] = slot;
    atomic_thread_fence(memory_order_release);
    *(volatile uint16_t *)&queue->ring.avail->idx = queue->available;
}

static void kick_if_wanted(struct queue *queue) {
    const uint64_t one = 1;
    uint16_t before = queue->offered_at_kick;
    bool wanted;
    atomic_thread_fence(memory_order_seq_cst);
    queue->offered_at_kick = queue->available;
    if (event_idx())
        wanted = vring_need_event(*(volatile uint16_t *)&vring_avail_event(&queue->ring), queue->available, before);
    else
        wanted = !(*(volatile uint16_t *)&queue->ring.used->flags & VRING_USED_F_NO_NOTIFY);
    if (!wanted)
        return;
    kicks++;
    if (write(queue->place.kick, &one, sizeof one) != sizeof one)
        err(1, "kick");
}

static bool has_used(const struct queue *queue) {
    uint16_t used = *(volatile uint16_t *)&queue->ring.used->idx;
    atomic_thread_fence(memory_order_acquire);
    return used != queue->taken;
}

static struct vring_used_elem next_used(struct queue *queue) {
    struct vring_used_elem element = queue->ring.used->ring[queue->taken++ % QUEUE_SIZE];
    if (element.id >= QUEUE_SIZE)
        errx(1, "the device gives back descriptor %u", element.id);
    return element;
}

static bool reclaim_tx(void) {
    struct queue *queue = &queues[TX];
    bool any = false;
    while (has_used(queue)) {
        queue->free[queue->free_count++] = (uint16_t)next_used(queue).id;
        any = true;
    }
    return any;
}

static void offer_rx(void) {
    struct queue *queue = &queues[RX];
    while (queue->free_count) {
        uint16_t slot = queue->free[--queue->free_count];
        offer(queue, slot, rx_buffer(slot), RX_BUFFER_BYTES, VRING_DESC_F_WRITE);
    }
    kick_if_wanted(queue);
}

/* Sleeps until the device interrupts, or an order comes, unless something is there already. */
static bool sleep_for(int milliseconds) {
    struct pollfd descriptors[QUEUES + 1];
    for (unsigned index = 0; index < QUEUES; index++) {
        descriptors[index] = (struct pollfd){.fd = queues[index].place.call, .events = POLLIN};
        *(volatile uint16_t *)&vring_used_event(&queues[index].ring) = queues[index].taken;
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (has_used(&queues[RX]) || has_used(&queues[TX]))
        return true;
    descriptors[QUEUES] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(descriptors, QUEUES + 1, milliseconds) <= 0)
        return false;
    for (unsigned index = 0; index < QUEUES; index++) {
        uint64_t count;
        if (descriptors[index].revents && read(descriptors[index].fd, &count, sizeof count) == sizeof count)
            interrupts += count;
    }
    return true;
}

static void wait_for_device(void) {
    if (!polls) {
        if (!sleep_for(PATIENCE_MS))
            errx(1, "the device does nothing");
        return;
    }
    double until = now() + PATIENCE_MS / 1e3;
    while (!has_used(&queues[RX]) && !has_used(&queues[TX]))
        if (now() > until)
            errx(1, "the device does nothing");
}

/* -- packets */

static void send_packet(uint32_t port, uint32_t peer_port, struct connection *connection, uint16_t op, uint32_t flags,
                        uint32_t length) {
    struct queue *queue = &queues[TX];
    while (!queue->free_count)
        if (!reclaim_tx())
            wait_for_device();
    uint16_t slot = queue->free[--queue->free_count];
    struct virtio_vsock_hdr header = {
        .src_cid = guest_cid,
        .dst_cid = 2,
        .src_port = port,
        .dst_port = peer_port,
        .len = length,
        .type = VIRTIO_VSOCK_TYPE_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = SOCKET_ROOM,
        .fwd_cnt = connection ? connection->passed_on : 0,
    };
    if (connection)
        connection->told = connection->passed_on;
    memcpy(tx_buffer(slot), &header, sizeof header);
    offer(queue, slot, tx_buffer(slot), (uint32_t)sizeof header + length, 0);
    packets_out++;
    kick_if_wanted(queue);
}

static void control(struct connection *connection, uint16_t op, uint32_t flags) {
    send_packet(connection->port, connection->peer_port, connection, op, flags, 0);
}

/* A packet of a connection that the host's side began: it is taken, and closed at once. */
static void serve_packet(const struct virtio_vsock_hdr *header) {
    if (header->op == VIRTIO_VSOCK_OP_REQUEST) {
        send_packet(header->dst_port, header->src_port, NULL, VIRTIO_VSOCK_OP_RESPONSE, 0, 0);
        send_packet(header->dst_port, header->src_port, NULL, VIRTIO_VSOCK_OP_SHUTDOWN, BOTH, 0);
    }
}

static void handle_packet(const struct virtio_vsock_hdr *header, uint32_t length) {
    packets_in++;
    if (length < sizeof *header || length - sizeof *header < header->len || header->src_cid != 2) {
        bad_packets++;
        return;
    }
    if (header->dst_port == serve_port) {
        serve_packet(header);
        return;
    }
    struct connection *connection = &connections[header->dst_port % WINDOW];
    if (connection->port != header->dst_port || connection->peer_port != header->src_port ||
        connection->state == CLOSED) {
        if (header->op != VIRTIO_VSOCK_OP_RST) /* it came after the end */
            send_packet(header->dst_port, header->src_port, NULL, VIRTIO_VSOCK_OP_RST, 0, 0);
        return;
    }
    connection->peer_room = header->buf_alloc;
    connection->peer_passed_on = header->fwd_cnt;
    switch (header->op) {
    case VIRTIO_VSOCK_OP_RESPONSE:
        connection->state = OPEN;
        break;
    case VIRTIO_VSOCK_OP_RW:
        connection->received += header->len;
        connection->passed_on += header->len;
        if (header->len)
            connection->last_byte = ((const uint8_t *)(header + 1))[header->len - 1];
        break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        control(connection, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
        break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        if (connection->state == SHUT)
            break;
        if (header->flags == BOTH) {
            control(connection, VIRTIO_VSOCK_OP_RST, 0);
            connection->state = CLOSED;
            ended++;
        } else {
            connection->state = SHUT;
            control(connection, VIRTIO_VSOCK_OP_SHUTDOWN, BOTH);
        }
        break;
    case VIRTIO_VSOCK_OP_RST:
        if (connection->state != SHUT)
            errx(1, "connection to port %u: %s", header->src_port,
                 connection->state == REQUESTED ? "refused" : "reset");
        connection->state = CLOSED;
        ended++;
        break;
    }
}

/* Takes what the device has given back; returns whether there was anything. */
static bool look(void) {
    struct queue *queue = &queues[RX];
    bool any = reclaim_tx();
    while (has_used(queue)) {
        struct vring_used_elem element = next_used(queue);
        handle_packet((const struct virtio_vsock_hdr *)rx_buffer(element.id), element.len);
        queue->free[queue->free_count++] = (uint16_t)element.id;
        any = true;
    }
    if (queue->free_count > QUEUE_SIZE / 2)
        offer_rx();
    for (unsigned index = 0; index < WINDOW; index++)
        if (connections[index].state == OPEN && connections[index].told != connections[index].passed_on)
            control(&connections[index], VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0);
    return any;
}

static void look_or_wait(void) {
    if (!look())
        wait_for_device();
}

/* -- streams */

static struct connection *begin(uint32_t number, uint32_t peer_port) {
    struct connection *connection = &connections[number % WINDOW];
    *connection = (struct connection){.state = REQUESTED, .port = FIRST_PORT + number, .peer_port = peer_port};
    control(connection, VIRTIO_VSOCK_OP_REQUEST, 0);
    return connection;
}

/* Sends `bytes` in writes of `size`: of each, as much as credit allows, in packets of at most 64 KiB. */
static void send_stream(struct connection *connection, uint64_t bytes, uint32_t size) {
    while (bytes) {
        uint32_t left = bytes < size ? (uint32_t)bytes : size;
        bytes -= left;
        while (left) {
            look();
            uint32_t room = connection->peer_room - (connection->sent - connection->peer_passed_on);
            if (connection->state != OPEN)
                errx(1, "the connection ended early");
            if (!room || queues[TX].free_count <= KEPT_FOR_CONTROL) {
                look_or_wait();
                continue;
            }
            uint32_t count = left < MAX_PAYLOAD ? left : MAX_PAYLOAD;
            count = count < room ? count : room;
            connection->sent += count;
            send_packet(connection->port, connection->peer_port, connection, VIRTIO_VSOCK_OP_RW, 0, count);
            left -= count;
        }
    }
}

static void receive_until(struct connection *connection, uint64_t received) {
    while (connection->received < received) {
        if (connection->state != OPEN)
            errx(1, "the connection ended early");
        look_or_wait();
    }
    if (connection->received != received)
        errx(1, "%lu bytes came and not %lu", connection->received, received);
}

static void expect_byte(struct connection *connection, uint64_t number, uint8_t byte) {
    receive_until(connection, number);
    if (connection->last_byte != byte)
        errx(1, "byte %d came and not %d", connection->last_byte, byte);
}

static void send_bytes(struct connection *connection, const void *data, uint32_t size) {
    for (unsigned slot = 0; slot < QUEUE_SIZE; slot++) /* whichever is the next */
        memcpy(tx_buffer(slot) + sizeof(struct virtio_vsock_hdr), data, size);
    send_stream(connection, size, size);
}

static double transfer(const struct order *order, uint32_t number) {
    struct command command = {.op = op_of(order), .size = order->size, .bytes = order->amount};
    struct connection *connection = begin(number, order->port);
    while (connection->state == REQUESTED)
        look_or_wait();
    send_bytes(connection, &command, sizeof command);
    expect_byte(connection, 1, READY);
    count_anew();
    const char go = GO;
    double started = now();
    send_bytes(connection, &go, 1);
    if (command.op == TO_HOST) {
        send_stream(connection, command.bytes, command.size);
        expect_byte(connection, 2, DONE);
    } else if (command.op == TO_GUEST) {
        receive_until(connection, 1 + command.bytes);
    } else {
        for (uint64_t done = command.size; done <= command.bytes; done += command.size) {
            send_stream(connection, command.size, command.size);
            receive_until(connection, 1 + done);
        }
    }
    double taken = now() - started;
    control(connection, VIRTIO_VSOCK_OP_SHUTDOWN, BOTH);
    connection->state = SHUT;
    while (connection->state == SHUT)
        look_or_wait();
    return taken;
}

static double connects(const struct order *order, uint32_t *number) {
    uint64_t started_ones = 0;
    ended = 0;
    count_anew();
    double started = now();
    while (ended < order->amount) {
        while (started_ones < order->amount && connections[*number % WINDOW].state == CLOSED) {
            begin((*number)++, order->port);
            started_ones++;
        }
        look_or_wait();
    }
    return now() - started;
}

/* The next order; until it comes, connects of the host's side are taken. */
static char *next_order(char *line, int size) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (poll(&input, 1, 0) == 0)
        if (!look())
            sleep_for(-1);
    return fgets(line, size, stdin);
}

/* -- beginning */

static void set_up(const char *socket_path) {
    int memfd = memfd_create("fake-guest", MFD_CLOEXEC);
    if (memfd < 0 || ftruncate(memfd, (off_t)(LOW_BYTES + HIGH_BYTES)))
        err(1, "memory");
    high = mmap(NULL, HIGH_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, (off_t)LOW_BYTES);
    if (high == MAP_FAILED)
        err(1, "memory");
    const struct region regions[] = {
        {0, LOW_BYTES, USER_ADDRESS, 0},
        {HIGH_ADDRESS, HIGH_BYTES, USER_ADDRESS + LOW_BYTES, LOW_BYTES},
    };
    struct queue_place places[QUEUES];
    for (unsigned index = 0; index < QUEUES; index++) {
        struct queue *queue = &queues[index];
        uint8_t *at = high + index * (RINGS_BYTES / QUEUES);
        vring_init(&queue->ring, QUEUE_SIZE, at, 4096);
        for (uint16_t slot = 0; slot < QUEUE_SIZE; slot++)
            queue->free[queue->free_count++] = (uint16_t)(QUEUE_SIZE - 1 - slot);
        uint64_t base = USER_ADDRESS + LOW_BYTES - (uint64_t)(uintptr_t)high;
        queue->place = (struct queue_place){
            .descriptors = base + (uintptr_t)queue->ring.desc,
            .available = base + (uintptr_t)queue->ring.avail,
            .used = base + (uintptr_t)queue->ring.used,
            .kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
            .call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
            .err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        };
        places[index] = queue->place;
    }
    features = start_device(socket_path, memfd, regions, 2, places, &guest_cid);
    offer_rx();
}

int main(int count, char **words) {
    if (count != 4)
        errx(2, "usage: driver SOCKET SERVE_PORT sleep|poll");
    serve_port = (uint32_t)strtoul(words[2], NULL, 10);
    polls = !strcmp(words[3], "poll");
    set_up(words[1]);
    printf("{\"ready\": true, \"features\": %lu, \"guest_cid\": %lu}\n", features, guest_cid);
    fflush(stdout);
    uint32_t number = 0;
    for (char line[128]; next_order(line, sizeof line);) {
        struct order order = parse_order(line);
        double taken = strcmp(order.work, "connect") ? transfer(&order, number++) : connects(&order, &number);
        printf("{\"seconds\": %.9f, \"packets_to_host\": %lu, \"packets_to_guest\": %lu, \"bad_packets\": %lu, "
               "\"kicks\": %lu, \"interrupts\": %lu}\n",
               taken, packets_out, packets_in, bad_packets, kicks, interrupts);
        fflush(stdout);
    }
    return 0;
}
