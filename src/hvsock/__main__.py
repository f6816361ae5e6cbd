"""`python -m hvsock` is the command `hvsock`."""

from hvsock.cli.main import main

if __name__ == "__main__":
    main()
