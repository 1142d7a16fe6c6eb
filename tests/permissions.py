"""File permissions that count for root as well.

Root ignores them. Another user would heed them, but need not reach the checkout, its environment or the
interpreter: where root's home is closed to others, that user cannot import.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["obey_permissions"]

_CAPABILITY_VERSION_3 = 0x20080522


def obey_permissions() -> None:
    """From now on this process may do with a file what the file's mode says: root gives up its
    capabilities (Linux), and stays the owner of its files. Call it before any thread is started.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none_left = (
        ctypes.c_uint32 * 6
    )()  # two sets of three words: effective, permitted, inheritable
    if libc.capset(header, none_left) != 0:
        raise OSError(ctypes.get_errno(), "root cannot give up its capabilities here")
