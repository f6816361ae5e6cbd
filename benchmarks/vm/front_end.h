/* QEMU's side of vhost-user, as far as a vsock device sees it: what QEMU 7.2 sends, in the same order. */

#ifndef FRONT_END_H
#define FRONT_END_H

#include <stdint.h>

#define QUEUE_SIZE 128 /* QEMU's */
#define QUEUES 2       /* rx and tx; the event queue stays with QEMU */

/* Where one queue is, in the front end's addresses, and its eventfds. */
struct queue_place {
    uint64_t descriptors, available, used;
    int kick, call, err;
};

/* One region of memory. */
struct region {
    uint64_t guest_address, size, user_address, offset;
};

/* Makes the device ready: realize, then start. Returns the features in use; ends the program where the device
 * lacks what QEMU requires. `memfd` has the regions. */
uint64_t start_device(const char *socket_path, int memfd, const struct region *regions, unsigned count,
                      const struct queue_place *queues, uint64_t *guest_cid);

#endif
