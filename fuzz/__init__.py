"""Hostile guests and front ends against the pure parts of the device; see README.md."""
