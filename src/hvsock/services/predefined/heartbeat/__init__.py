"""Heartbeat: the host asks every two seconds, and the guest answers with the state of its programs.

- :mod:`.protocol`: the service and its messages, which is also the guest half.
- :mod:`.applications`: how programs in the guest tell their state.
- :mod:`.status`: what the host makes of answers, and of none (pure).
- :mod:`.monitor`: watches any number of VMs.
"""
