"""A process of the chaos machine: runs the driver's commands and reports their outcomes.

    python -m tests.proof.chaos.worker SOCKET NUMBER DATABASE SEED [FAULT]

An outcome is reported once the call has returned, so that after a kill only the outcome of the running charge
is unknown. A worker that is a `nursery` opens nothing: it forks workers that inherit nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path

from goal_state.delivery import consumers
from goal_state.storage import (
    verification,  # noqa: F401  what is imported late must not be struck half-way in
)
from tests.proof.chaos import faults, strikes
from tests.proof.chaos.acts.base import trace
from tests.proof.chaos.acts.charging import Charging
from tests.proof.chaos.acts.copies import Copies
from tests.proof.chaos.acts.hosts import Hosts
from tests.proof.chaos.acts.metering import Metering
from tests.proof.chaos.acts.processes import Leave, Processes, Reborn, fork
from tests.proof.chaos.acts.telling import ShortLease, Telling
from tests.proof.chaos.channel import Channel


class Worker(Processes, Charging, Copies, Hosts, Telling, Metering):
    """Carries out one order after the other."""

    def serve(self) -> None:
        while (order := self.channel.hear()) is not None:
            try:
                said = getattr(self, f"do_{order['do']}")(**order["with"])
            except (Reborn, Leave):
                raise
            except BaseException as error:
                self.channel.say(
                    {"n": order["n"], "error": type(error).__name__, "trace": trace(error)}
                )
            else:
                self.channel.say({"n": order["n"], "said": said})
        os._exit(3)  # the driver is gone


class Nursery:
    """A process that opens nothing and forks workers that inherit nothing."""

    def __init__(self, place: Path, path: Path, seed: int) -> None:
        self.place, self.path, self.seed = place, path, seed
        self.channel = Channel(place)
        self.channel.say({"worker": 0, "pid": os.getpid()})
        self.children: list[int] = []

    def serve(self) -> None:
        while (order := self.channel.hear()) is not None:
            for child in list(self.children):
                if os.waitpid(child, os.WNOHANG)[0]:
                    self.children.remove(child)
            child = fork()
            if child == 0:
                self.channel.close()
                raise Reborn(Worker(self.place, order["with"]["worker"], self.path, self.seed))
            self.children.append(child)
            self.channel.say({"n": order["n"], "said": child})
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os._exit(0)


def main(place: str, number: str, path: str, seed: str, fault: str = "") -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    strikes.prepare()
    consumers.Consumer = ShortLease  # type: ignore[misc]
    if fault:
        faults.FAULTS[fault].put_back()
    here: Worker | Nursery
    if int(number) == 0:
        here = Nursery(Path(place), Path(path), int(seed))
    else:
        here = Worker(Path(place), int(number), Path(path), int(seed))
    while True:
        try:
            here.serve()
        except Reborn as reborn:
            here = reborn.worker
        except Leave:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
