"""What Windows itself knows: registered services, and the names of VMs.

- :mod:`.registry`: services, in the key GuestCommunicationServices.
- :mod:`.powershell`: one question to PowerShell, with bounds.  :mod:`.vms`: the VMs of this host by name.
- :mod:`.names`: addresses with names in them.
- :mod:`.integration`: what is enabled for a VM.  :mod:`.components`: its integration services.
- :mod:`.host`: services and what is enabled for VMs, as the commands see them.
- :mod:`.builds`: which builds of hosts and guests have Hyper-V's sockets.
"""
