"""What `make bench` measures; see __main__."""
