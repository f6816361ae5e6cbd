"""Guest Service Interface: files and trees between a host and its guests, both ways.

The protocol, version 1, over one stream of the service. The host connects, and is the only one that asks; one
connection copies one file or tree. Numbers are big-endian. Everything is frames: one byte that says which, four
bytes with the length of the body, and the body, whose length is bounded for each kind (:mod:`.frames`).

1. The host sends HELLO, with a magic number and the versions that it speaks. The guest answers HELLO with the one
   that it picked, or ERROR.
2. The host sends PUT or GET with an absolute path. From here on one side is the *sender*, the other the
   *receiver*. The receiver of a PUT is the guest, of a GET the host.
3. The sender sends PLAN, how much is to come (for progress bars; nobody relies on it), and then the one root entry
   and what is in it:

   - FOLDER opens a folder in the one that is open; what follows is in it until LEAVE closes it. So a name is
     always one component, and no path ever crosses the connection,
   - LINK is a symbolic link, with its target,
   - FILE is a regular file with its size, DATA its bytes in blocks, and TAIL its end with the CRC-32 of all of it,
     or ABORT when it could not be read to its end, or changed meanwhile,
   - SKIPPED names what the sender left out, and why.

4. There is no round trip for each file, with one exception. After a FILE of RESUME_BYTES or more the receiver
   sends HAVE: how many bytes it has of it from an earlier try, and their CRC-32; or that it wants nothing of it.
   The sender checks that against its own file, and answers FROM: where DATA will begin, that place or 0.
5. The sender ends with FINISH; the receiver answers with failures, FAILED each, and DONE with its counts. Either
   side sends ERROR at any time when it cannot go on, and ALIVE while something takes long.

A receiver writes each file under a temporary name beside its own, syncs it, and renames it: under its own name
there is the whole file or what was there before, whatever is killed. The temporary name is made of the name, the
size and the time of change, so that another try finds it.

CRC-32 finds accidents: a disk, a file that changed under the reader. It does not protect against the other side,
who could as well send other bytes with the right checksum. It runs at 1.7 GB/s where BLAKE2 has 0.4, and in an
emulated guest SHA-256 without the processor's help would be slower than the connection.

- :mod:`.frames`: the frames (pure).  :mod:`.channel`: frames over a socket.
- :mod:`.walking`: what there is to copy.  :mod:`.sending`: the sender.
- :mod:`.placing`: files put in place, below one folder.  :mod:`.receiving`: the receiver.
- :mod:`.guest`: the guest half.  :mod:`.copying`: the host's, `copy_to`, `copy_from`.  :mod:`.working`: threads.
"""
