"""What this process runs on, in the words of the recorded events."""

from __future__ import annotations

import platform
import re
from functools import cache
from typing import Final

__all__ = ["machine_arch", "os_name", "os_version"]

_OS: Final = {"Darwin": "macos"}
_ARCH: Final = {"amd64": "x86_64", "arm64": "aarch64", "i386": "x86", "i686": "x86"}


@cache
def os_name() -> str:
    """The operating system: "linux", "macos", "windows" or its own name in lower case."""
    system = platform.system()
    return _OS.get(system, system.lower()) or "unknown"


@cache
def os_version() -> str:
    """The version of the operating system: on Linux the distribution's, or the kernel's if it has none.

    One or two bare numbers are filled up to three: Debian's "12" is "12.0.0", as in the recorded events.
    """
    found = {"Linux": _linux_version, "Darwin": lambda: platform.mac_ver()[0]}.get(
        platform.system(), platform.version
    )()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}", found):
        numbers = [int(number) for number in found.split(".")]
        return ".".join(map(str, [*numbers, 0, 0][:3]))
    return found or "unknown"


@cache
def machine_arch() -> str:
    """The processor's architecture: "x86_64", "aarch64" …"""
    machine = platform.machine().lower()
    return _ARCH.get(machine, machine) or "unknown"


def _linux_version() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_ID", "") or platform.release()
    except OSError:
        return platform.release()
