"""What a rollout's newest usage costs to read: 1 GiB of history against 1 MiB.

    python -m benchmarks.rollout_tail [--rounds 30] [--large-mib 1024]

Both files hold recorded-looking lines throughout (nothing is sparse), end in the same tail and are read in
interleaved rounds, each by a fresh `RolloutReader`. Exits with 1 if the large file takes more than 1.5 times
as long, or 32 MiB more memory than at rest.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks.measure import Figure, Scale, Spread, interleaved, ratios
from goal_state.codex.rollout import RolloutReader, RolloutTail

__all__ = ["run"]

GROUP = "rollout"
MAX_RATIO = 1.5
MAX_EXTRA_MIB = 32
MIB = 2**20


def event(kind: str, **payload: object) -> dict[str, object]:
    return {"type": "event_msg", "payload": {"type": kind, **payload}}


def turn(number: int, *, filler: int = 40) -> Iterator[dict[str, object]]:
    turn_id = f"turn-{number}"
    counts = dict.fromkeys(("input_tokens", "output_tokens"), number)
    usage = {"total_token_usage": counts, "last_token_usage": counts}
    yield event("task_started", turn_id=turn_id, model_context_window=258_400)
    yield {"type": "turn_context", "payload": {"turn_id": turn_id}}
    for _ in range(filler):
        yield {"type": "response_item", "payload": {"type": "message", "text": "word " * 200}}
    record = {"turn_id": turn_id, "usage": counts, "thread_token_usage": counts}
    yield {"type": "token_usage_record", "payload": record}
    yield event("token_count", info={**usage, "model_context_window": 258_400})
    yield event("task_complete", turn_id=turn_id)


def as_bytes(lines: Iterable[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def write_rollout(path: Path, size: int) -> None:
    block = b"".join(as_bytes(turn(number)) for number in range(20))
    with path.open("wb") as file:
        file.write(as_bytes([{"type": "session_meta", "payload": {"id": "thread"}}]))
        while file.tell() < size:
            file.write(block)
        file.write(as_bytes(turn(9_999_999)))


def read(path: Path) -> RolloutTail:
    return RolloutReader(path).restored()


def seconds(path: Path) -> float:
    began = time.perf_counter()
    read(path)
    return time.perf_counter() - began


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    size = scale.rollout_mib
    small, large = directory / "small.jsonl", directory / "large.jsonl"
    write_rollout(small, MIB)
    write_rollout(large, size * MIB)
    taken = interleaved(
        {"small": lambda: read(small), "large": lambda: read(large)},
        rounds=scale.rounds,
        turns=scale.turns,
        calls=1,
    )
    medians = [Spread.of(taken[name]).median * 1e6 for name in ("large", "small")]
    yield Figure(
        GROUP,
        f"the newest usage of a rollout of {size} MiB",
        ratios(taken["large"], taken["small"]),
        reference="of one of 1 MiB",
        target=MAX_RATIO,
        behind=f"{medians[0]:.0f} / {medians[1]:.0f} µs",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the files are made (and deleted)"
    )
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        small, large = Path(directory, "small.jsonl"), Path(directory, "large.jsonl")
        write_rollout(small, MIB)
        write_rollout(large, options.large_mib * MIB)
        if read(small) != read(large):
            raise SystemExit("the two files tell different things")
        taken: dict[Path, list[float]] = {small: [], large: []}
        for number in range(options.rounds):
            for path in (small, large) if number % 2 else (large, small):
                taken[path].append(seconds(path))
        at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        read(large)
        _, traced = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_rest

        began = time.perf_counter()
        usages = sum(1 for _ in RolloutReader(large).usages())
        whole = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_rest

    ratio = statistics.median(taken[large]) / statistics.median(taken[small])
    print(
        f"1 MiB      {statistics.median(taken[small]) * 1e6:8.0f} µs (median of {options.rounds})"
    )
    print(f"{options.large_mib} MiB   {statistics.median(taken[large]) * 1e6:8.0f} µs")
    print(f"ratio      {ratio:8.2f}    (at most {MAX_RATIO})")
    print(f"memory     {traced / MIB:8.2f} MiB traced, {grown / 1024:.2f} MiB of the process")
    print(f"for comparison, all {usages} usages forwards: {whole:.1f} s, {peak / 1024:.2f} MiB")
    return int(ratio > MAX_RATIO or traced > MAX_EXTRA_MIB * MIB or peak > MAX_EXTRA_MIB * 1024)


if __name__ == "__main__":
    sys.exit(main())
