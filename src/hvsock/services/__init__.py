"""Integration services of one's own, and the predefined ones.

- :mod:`.service`: a service is a class with typed operations.  :mod:`.messages`, :mod:`.types`: what they take.
- :mod:`.serving`: serve it, or a bare stream.  :mod:`.connecting`: an instance that stands for it elsewhere.
- :mod:`.caller`: who calls.  :mod:`.policy`: what may be called.  :mod:`.negotiation`: which version is spoken.
- :mod:`.session`, :mod:`.wire`: one connection, and gRPC on it.
- :mod:`.agenthood`: what the guest half of a predefined service may rely on.
"""
