"""The relay: existing servers as services. It takes their connections and passes the bytes on, both ways.

- :mod:`.connection`: one connection and the one to its target, joined;
- :mod:`.relay`: all of them in one thread, with their limits;
- :mod:`.complaints`: what the log is told;
- :mod:`.following`: what the registry wants to be forwarded, and to whom;
- :mod:`.process`: the relay as a process, one for each fabric;
- :mod:`.keeper`: how `hvsock up` keeps one running;
- :mod:`.uplink`: where the host is a VM or a container itself, the way to its own parent.

It is a process of its own, never the broker: the broker carries no payload. AF_UNIX cannot hand a connection of
the fabric to a server that waits for one of its own kind, so somebody has to stand between the two.
"""
