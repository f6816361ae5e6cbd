"""Real virtual machines as partitions: the guest image, QEMU, and a supervisor for each VM.

- :mod:`.launch`, :mod:`.supervisor`, :mod:`.children`: starting a VM, and the process that runs it.
- :mod:`.runs`, :mod:`.control`, :mod:`.console`: its folder, what is asked of it, and its serial console.
- :mod:`.qemu`, :mod:`.kvm`: QEMU's command line, and whether KVM runs guests here.
- :mod:`.image`, :mod:`.layers`: the default guest, made once and kept.  :mod:`.userland`, :mod:`.debian`,
  :mod:`.software`, :mod:`.wheels`: where it comes from.
- :mod:`.kernel`, :mod:`.modules`, :mod:`.cpio`: its formats.
- :mod:`.overlay`: what a user adds.  :mod:`.guest`: what runs in it.
"""
