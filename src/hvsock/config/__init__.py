"""The configuration: one TOML file with profiles, of which a process has one.

- :mod:`.settings`: what a profile says, as values (pure).
- :mod:`.schema`: a file's text as these values, or one error that names the key (pure).
- :mod:`.files`: where the file lies, and which profile it is.
"""
