"""The pump between a connection and two descriptors, over each kind of descriptor."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pty
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hvsock
from hvsock.cli.pump import Pump
from hvsock.sockets.socket import socket
from hvsock.testing.streams import patterned as _patterned_of_the_library  # noqa: F401
from tests.support import sample
