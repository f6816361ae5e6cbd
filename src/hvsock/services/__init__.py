"""Integration services of one's own, and the predefined ones.

- :mod:`.service`: a service is a class with typed operations.  :mod:`.messages`, :mod:`.types`: what they take.
- :mod:`.serving`: serve it, or a bare stream.  :mod:`.connecting`: an instance that stands for it elsewhere.
- :mod:`.caller`: who calls.  :mod:`.policy`: what may be called.  :mod:`.negotiation`: which version is spoken.
- :mod:`.session`, :mod:`.wire`: one connection, and gRPC on it.  :mod:`.proto`, :mod:`.publishing`: its schemas.
- :mod:`.rates`, :mod:`.peerlog`: how fast a peer may be, and how slow.
- :mod:`.agent`: what serves the guest halves of all that is enabled.  :mod:`.agenthood`: what they may rely on.
  :mod:`.supervising`, :mod:`.loading`: the process that forks it.
- :mod:`.predefined`, :mod:`.powershell`: the services themselves.
- :mod:`.asgi`: an ASGI application as a service.  :mod:`.skeleton`: what `hvsock service new` writes.
"""
