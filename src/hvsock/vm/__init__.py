"""Real virtual machines as partitions: the guest image, QEMU, and a supervisor for each VM."""
