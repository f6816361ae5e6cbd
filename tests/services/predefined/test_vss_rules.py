"""Which file systems a freeze is about, and how far one has come."""

from __future__ import annotations

import sys
from typing import Any

assert sys.platform == "linux"

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hvsock.services.predefined.vss.machine import Machine
from hvsock.services.predefined.vss.mounts import FREEZABLE, Mount, parse, targets

MOUNTINFO = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:2 - proc proc rw
24 22 0:22 / /run rw - tmpfs tmpfs rw,size=10%
25 22 254:15 / /boot/efi rw shared:3 - vfat /dev/vda15 rw,fmask=0077
26 22 254:16 / /srv/my\040data\134x ro,relatime - xfs /dev/vdb rw
27 22 0:40 / /net rw - nfs4 server:/export rw
28 22 254:17 / /media ro - ext4 /dev/vdc ro
29 22 0:41 /sub /sub rw - btrfs /dev/vdd rw,subvol=/sub
30 22 0:41 /other /other rw - btrfs /dev/vdd rw,subvol=/other
31 22 7:0 / /srv/inner rw master:5 propagate_from:2 - ext4 /dev/loop0 rw
32 22 0:50 / /merged rw - overlay overlay rw,lowerdir=/a
33 22 254:1 /home /bound rw - ext4 /dev/vda1 rw
34 22 0:51 / /\377 rw - fuse.sshfs me@there:/ rw
no line
35 22 0:52 / /x rw
"""


def test_targets_are_what_is_written_to_a_disk_the_newest_first() -> None:
    found = targets(parse(MOUNTINFO))
    assert [[one.path for one in target.mounts] for target in found] == [
        ["/srv/inner"],
        ["/sub", "/other"],
        ["/srv/my data\\x"],
        ["/boot/efi"],
        ["/", "/bound"],
    ]
    assert [target.obstacle for target in found] == ["", "", "", "the kernel freezes no vfat", ""]


def test_a_mount_in_full() -> None:
    assert parse(MOUNTINFO)[5 - 1] == Mount(26, "254:16", "/srv/my data\\x", "xfs", "/dev/vdb", True)
    assert len(parse(MOUNTINFO)) == 13


@given(st.binary(max_size=300))
def test_any_text_is_read(text: bytes) -> None:
    targets(parse(text))


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([*sorted(FREEZABLE), "vfat", "tmpfs"]), st.booleans()),
        max_size=12,
    )
)
def test_each_file_system_comes_once_and_those_above_come_first(drawn: list[tuple[int, str, bool]]) -> None:
    mounts = [
        Mount(number, f"1:{device}", f"/{number}", kind, "/dev/x" if kind != "tmpfs" else "tmpfs", writable)
        for number, (device, kind, writable) in enumerate(drawn)
    ]
    found = targets(mounts)
    devices = [target.mounts[0].device for target in found]
    assert len(set(devices)) == len(devices)
    firsts = [target.mounts[0].number for target in found]
    assert firsts == sorted(firsts, reverse=True)
    assert all(mount.writable for target in found for mount in target.mounts)
    assert all(bool(target.obstacle) == (target.mounts[0].kind not in FREEZABLE) for target in found)


class Freezes(RuleBasedStateMachine):
    """Any order of what two threads do; nothing stays frozen after the end, and nothing is thawed twice."""

    under_way = Bundle("under_way")

    def __init__(self) -> None:
        super().__init__()
        self.count = 3
        self.machine = Machine(self.count)
        self.frozen: list[int] = []
        self.begun = 0

    @rule(target=under_way)
    def begin(self) -> Any:
        """The freezing thread takes the next."""
        number = self.machine.begin_next()
        assert number is None or number == self.begun
        assert (number is None) == (self.machine.is_over or self.begun == self.count)
        self.begun += number is not None
        return number

    @rule(number=consumes(under_way))
    def freeze(self, number: int | None) -> None:
        """It has frozen it."""
        if number is not None and self.machine.frozen(number):
            self.frozen.append(number)

    @rule()
    def end(self) -> None:
        """The watching thread ends it."""
        assert self.machine.end() == self.frozen[::-1]
        self.frozen = []

    @invariant()
    def nothing_is_left(self) -> None:
        """What the machine says."""
        assert not (self.machine.is_over and self.frozen)
        assert self.machine.is_frozen == (not self.machine.is_over and len(self.frozen) == self.count)


Freezes.TestCase.settings = settings(max_examples=50, stateful_step_count=15)
TestFreezes = Freezes.TestCase
