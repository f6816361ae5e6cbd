"""Receiving descriptors: as many as are asked for, close-on-exec, by all flags of recvmsg."""

from __future__ import annotations

import os
import socket
import sys

import pytest

assert sys.platform == "linux"

from hvsock.fabric import passing


@pytest.mark.parametrize("type_", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("sent", range(4))
@pytest.mark.parametrize("most", [1, 2])
def test_a_look_and_the_message_itself(type_: int, sent: int, most: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, type_)
    reading, writing = os.pipe()
    with near, far:
        socket.send_fds(near, [b"text"], [writing] * sent) if sent else near.send(b"text")
        os.close(writing)
        for flags in (socket.MSG_PEEK, 0):
            data, descriptors, cut = passing.receive(far, 100, most, flags)
            assert (data, len(descriptors), cut) == (b"text", min(sent, most), sent > most)
            for descriptor in descriptors:
                assert not os.get_inheritable(descriptor)
                os.close(descriptor)
        with pytest.raises(BlockingIOError):
            passing.receive(far, 100, most, socket.MSG_DONTWAIT)
        assert os.read(reading, 1) == b"", "what was too many is closed, and nothing is left over"
        os.close(reading)
        near.close()
        assert passing.receive(far, 100, most) == (b"", [], False)
