"""PowerShell Direct: sessions of PowerShell over Hyper-V sockets, client and server."""
