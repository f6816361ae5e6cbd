"""The VMs that a process knows without a broker: by name, VmId, context id, and the path of their VMM.

- :mod:`.libvirt`, :mod:`.qemu`: what a domain's XML and a QEMU's command line say (pure).
- :mod:`.sources`: who is asked for these.
- :mod:`.known`: all of them, and the configuration's.
"""
