"""The command line: `hvsock`.

- :mod:`.main`: the command itself, with the table of its subcommands.
- :mod:`.lazy`: groups that import a subcommand when it is called.
- :mod:`.outcome`: exit codes, and what is said when something goes wrong; the one place for both.
- :mod:`.output`: tables and JSON.  :mod:`.watching`: reports, once or live.  :mod:`.clipboard`: the clipboard.
- :mod:`.loglines`: a log as lines of a command.
- :mod:`.names`: the registry, names of services and partitions, and their completion.
- :mod:`.sessions`: what `listen` and `connect` do.  :mod:`.pump`, on Windows :mod:`.pump_threads`: between a
  connection and standard input and output.
- :mod:`.remote`, :mod:`.powershell`: sitting at a command, or a PowerShell, of a guest.
- :mod:`.steps`, :mod:`.walkthrough` and its like: what `hvsock demo` does.
- :mod:`.checks`: those of `hvsock doctor`.
- :mod:`.commands`: one module for each subcommand, or for a few of a kind.
"""
