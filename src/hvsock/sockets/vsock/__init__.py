"""The vsock transport: Hyper-V sockets in a Linux guest, over AF_VSOCK.

- :mod:`.socket`: the class, with the interface of the fabric's.
- :mod:`.addressing`: VmIds as context ids.
- :mod:`.ports`: ServiceIds as ports, by the template or by an alias that the host knows.
- :mod:`.messages`: messages of SOCK_SEQPACKET that go whole, although the sender may not wait in the kernel.
- :mod:`.failures`: what the kernel's errors mean here.
"""
