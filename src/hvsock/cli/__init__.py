"""The command line: `hvsock`.

- :mod:`.main`: the command itself, with the table of its subcommands.
- :mod:`.lazy`: groups that import a subcommand when it is called.
- :mod:`.outcome`: exit codes, and what is said when something goes wrong; the one place for both.
- :mod:`.output`: tables and JSON.  :mod:`.clipboard`: the clipboard.
- :mod:`.names`: names of services and partitions, and their completion.
- :mod:`.pump`: between a connection and standard input and output.
- :mod:`.walkthrough`: what `hvsock demo` does.
- :mod:`.commands`: one module for each subcommand, or for a few of a kind.
"""
