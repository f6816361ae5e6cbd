"""Equivalents of Hyper-V's predefined integration services: new protocols with the meaning of the originals."""
