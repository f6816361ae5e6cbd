"""Direct: commands, a shell and files of a guest by SSH over the fabric, as PowerShell Direct has them on Windows.

Nothing listens on a network. The fabric proves who is at either end, and the keys hang on that:

- A connection may begin with a *hand-over* (:mod:`.handover`), one line each way: the host gives its public key,
  the guest its host key. The guest takes it because its listener lets in its parent alone. Then, or at once where
  there is no hand-over (stock OpenSSH), the connection is SSH.
- The host (:mod:`.hostkeys`) has a key pair for each VM, and pins the host key of a guest that can keep one, so
  that no other program of that guest can pass for its agent later. A guest whose state does not outlive its boot
  (:mod:`.guestkeys`) says so and is not pinned: each boot has a new key, vouched for by the fabric.

The guest's half is :mod:`.service` in the agent, which hands connections to a process that loads asyncssh on
first use and forks one for each of them: :mod:`.keeping` is the agent's hold of it, :mod:`.keeper` the process,
:mod:`.door` (:mod:`.server`, :mod:`.processes`) what serves one connection. The host's half is :mod:`.connecting`.
"""
