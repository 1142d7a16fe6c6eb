"""A process that forks while it has a store open: parent and child go on, or the child is refused."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from goal_state import GoalStore
from tests.processes import python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

Run = Callable[..., str]

FORKS = 100
"""Under a writing thread."""

PRELUDE = """
import os, signal, sys, threading, time, traceback, warnings
from contextlib import closing
from goal_state import ForkedStoreError, GoalStore, StoreClosedError

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork beside threads
signal.alarm(50)  # rather than to hang
path = sys.argv[1]


def child(work):
    process = os.fork()
    if process == 0:
        signal.alarm(30)  # rather than to hang
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return process


def join(*processes):
    for process in processes:
        assert os.waitpid(process, 0)[1] == 0, "a child failed"


def refused(call):
    try:
        call()
    except ForkedStoreError as error:
        assert len(str(error)) > 20
    else:
        raise AssertionError("it was not refused")


def refuse_all(store):
    refused(lambda: store.get("t"))
    refused(lambda: store.charge("t", tokens=1))
    refused(lambda: GoalStore.open(path))


def in_thread(work, *arguments):
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def end(thread):
    thread.join(20)
    assert not thread.is_alive(), "a thread hangs"


def store_with_goal(**options):
    store = GoalStore.open(path, **options)
    store.create("t", "Ship")
    return store


def charge(store, thread_id="t", tokens=1):
    assert store.charge(thread_id, tokens=tokens).applied


"""


@pytest.fixture
def run(database: Path) -> Run:
    """Runs a program on a database, with what else it is given, and returns what it printed."""
    return lambda code, *arguments: python(PRELUDE + code, database, *arguments)


def tokens(path: Path, thread_id: str = "t") -> int:
    """What was charged, in a file that is whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with GoalStore.open(path, migrate=False) as store:
        assert store.verify() == []
        goal = store.get(thread_id)
        assert goal is not None
        return goal.tokens_used


# -- a child ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_store_works_on_in_the_child_and_in_the_parent(run: Run, database: Path) -> None:
    run("""
with store_with_goal() as store:
    store.get("t")  # so that a reader's connection is open as well

    def work():
        assert store.get("t").tokens_used == 0
        charge(store)
        assert store.transact(lambda repository: repository.charge("t", tokens=1)).applied
        assert [goal.thread_id for goal in store.goals()] == ["t"]
        assert [event.kind for event in store.events()][-1] == "usage_accounted"
        assert store.verify() == []

    process = child(work)
    join(process)
    charge(store)
    assert store.get("t").tokens_used == 3
""")
    assert tokens(database) == 3


@pytest.mark.slow
def test_parent_and_child_charging_at_once_lose_nothing(run: Run, database: Path) -> None:
    run("""
with store_with_goal() as store:

    def work():
        for _ in range(100):
            charge(store)

    process = child(work)
    work()
    join(process)
""")
    assert tokens(database) == 200


@pytest.mark.slow
def test_the_childs_own_store_beside_the_parents_loses_nothing(run: Run, database: Path) -> None:
    run("""
store = store_with_goal()

def work():
    with GoalStore.open(path) as own:
        for _ in range(50):
            charge(own)
    charge(store)

process = child(work)
for _ in range(50):
    charge(store)
join(process)
charge(store)
os._exit(0)  # without closing
""")
    assert tokens(database) == 102


@pytest.mark.slow
@pytest.mark.parametrize("how", ["store", "own store"])
def test_what_a_child_acknowledged_is_there_after_the_parent_left_and_the_child_was_killed(
    run: Run, database: Path, how: str
) -> None:
    """The parent is the last one to close that anybody knows of, if the child's locks are not there."""
    run(
        """
import subprocess
begun, ended = os.pipe(), os.pipe()
store = store_with_goal()
charge(store, tokens=11)

def list_goals():
    subprocess.run([sys.executable, "-m", "goal_state", "list", "--db", path], check=True,
                   stdout=subprocess.DEVNULL, timeout=30)

def work():
    used = GoalStore.open(path) if sys.argv[2] == "own store" else store
    charge(used)
    os.write(begun[1], b".")
    while os.getppid() == parent:
        time.sleep(0.001)
    list_goals()
    for _ in range(200):
        charge(used)
    list_goals()
    charge(used)
    os.write(ended[1], b".")
    os.kill(os.getpid(), signal.SIGKILL)

if os.fork() == 0:  # the other one stays to see the end of it
    signal.alarm(30)
    parent = os.getpid()
    child(work)
    assert os.read(begun[0], 1) == b"."
    store.close()
    os._exit(0)
os.close(ended[1])
assert os.read(ended[0], 1) == b"."
assert os.read(ended[0], 1) == b""  # the other end is closed: it is dead
os._exit(0)
""",
        how,
    )
    assert tokens(database) == 11 + 1 + 201


@pytest.mark.slow
@pytest.mark.parametrize(
    "leave", ["sys.exit(0)", "store = None; import gc; gc.collect(); sys.exit(0)"]
)
@pytest.mark.parametrize("close", ["store.close()", "pass"])
def test_a_child_that_ends_in_the_usual_way_harms_nothing(
    run: Run, database: Path, leave: str, close: str
) -> None:
    run(f"""
store = store_with_goal()
process = os.fork()
if process == 0:
    signal.alarm(30)
    charge(store)
    {close}
    {leave}
charge(store)
join(process)
charge(store)
store.close()
""")
    assert tokens(database) == 3


@pytest.mark.slow
def test_a_child_that_never_calls_harms_nothing(run: Run, database: Path) -> None:
    run("""
with store_with_goal() as store:
    go = os.pipe()
    process = child(lambda: os.read(go[0], 1))
    for _ in range(50):
        charge(store)
    other = child(lambda: charge(store))
    join(other)
    os.write(go[1], b".")
    join(process)
    charge(store)
""")
    assert tokens(database) == 52


@pytest.mark.slow
def test_a_closed_store_stays_closed_in_the_child(run: Run) -> None:
    run("""
store = store_with_goal()
store.close()

def work():
    try:
        store.get("t")
    except StoreClosedError:
        return
    raise AssertionError

join(child(work))
""")


@pytest.mark.slow
def test_a_child_of_a_child_that_has_ended_works(run: Run, database: Path) -> None:
    """As a daemon is made."""
    run("""
read, write = os.pipe()
store = store_with_goal()

def grandchild():
    charge(store)
    os.write(write, b".")
    time.sleep(0.05)  # by then nobody of its family is left
    charge(store)
    with GoalStore.open(path) as own:
        charge(own)
    os.write(write, b".")

def work():
    charge(store)
    child(grandchild)

join(child(work))
charge(store)
assert os.read(read, 1) == os.read(read, 1) == b"."
store.close()
""")
    assert tokens(database) == 5


# -- many forks ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_forks_under_writing_and_reading_threads_lose_nothing(
    run: Run, database: Path
) -> None:
    said = run(
        """
forks = int(sys.argv[2])
store = store_with_goal(durability="normal")
store.create("parent", "Ship")
stopping, made, failed = [], [0, 0], []

def write(number):
    try:
        while not stopping:
            charge(store, "parent")
            made[number] += 1
            time.sleep(0.0005)
    except BaseException as error:
        failed.append(error)

def read():
    try:
        seen = 0
        while not stopping:
            now = store.get("parent").tokens_used
            assert now >= seen, "a read of the past"
            seen = now
            assert len(list(store.goals())) == 2
            time.sleep(0.0005)
    except BaseException as error:
        failed.append(error)

threads = [in_thread(write, 0), in_thread(write, 1), in_thread(read)]
waiting = []
for number in range(forks):
    assert not failed, failed
    before = list(made)
    waiting.append(child(lambda: charge(store)))
    if len(waiting) >= 4:
        join(waiting.pop(0))
join(*waiting)
stopping.append(True)
for thread in threads:
    end(thread)
assert not failed, failed
assert store.get("parent").tokens_used == sum(made)
store.close()
print(sum(made))
""",
        FORKS,
    )
    assert int(said) > 0
    assert tokens(database) == FORKS
    assert tokens(database, "parent") == int(said)


@pytest.mark.slow
def test_children_of_a_warm_parent_that_goes_on_charging_lose_nothing(
    run: Run, database: Path
) -> None:
    """Servers that fork before they serve; workers whose parent has a store of its own."""
    run("""
store = store_with_goal(durability="normal")
charge(store)
list(store.goals())

def serve():
    def some():
        for _ in range(20):
            charge(store)
            assert store.get("t") is not None
    threads = [in_thread(some) for _ in range(3)]
    for thread in threads:
        end(thread)
    store.close()

processes = [child(serve) for _ in range(4)]
for _ in range(60):
    charge(store)
join(*processes)
store.close()
""")
    assert tokens(database) == 1 + 4 * 3 * 20 + 60


@pytest.mark.slow
def test_children_that_outlive_their_parent_lose_nothing(run: Run, database: Path) -> None:
    run(
        """
read, write = os.pipe()
main = os.getpid()

def parent():
    store = store_with_goal()
    me = os.getpid()

    def work():
        charge(store)
        while os.getppid() == me:
            time.sleep(0.001)
        for _ in range(20):
            charge(store)
        store.close()
        os.write(write, b".")

    for _ in range(3):
        child(work)
    charge(store)
    if sys.argv[2] == "closed":
        store.close()

join(child(parent))
for _ in range(3):
    assert os.read(read, 1) == b"."
""",
        "closed",
    )
    assert tokens(database) == 1 + 3 * 21


@pytest.mark.slow
def test_a_pool_of_forked_processes_uses_the_parents_store(run: Run, database: Path) -> None:
    run("""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

fork = multiprocessing.get_context("fork")
store = store_with_goal(durability="normal")

def work(number):
    charge(store)
    return os.getpid()

if __name__ == "__main__":
    with ProcessPoolExecutor(3, mp_context=fork) as pool:
        first = pool.submit(work, 0)
        for _ in range(10):
            charge(store)
        assert os.getpid() not in set(pool.map(work, range(29))) | {first.result(30)}
    process = fork.Process(target=work, args=(0,))
    process.start()
    charge(store)
    process.join(30)
    assert process.exitcode == 0
    with fork.Pool(2) as pool:
        pool.map(work, range(10))
    store.close()
""")
    assert tokens(database) == 30 + 10 + 1 + 1 + 10


@pytest.mark.slow
def test_stores_on_several_files_all_go_on(run: Run, tmp_path: Path) -> None:
    run("""
other = path + "-other.db"
with GoalStore.open(path) as one, GoalStore.open(path) as same, GoalStore.open(other) as two:
    for store in (one, two):
        store.create("t", "Ship")

    def work():
        for store in (one, same, two):
            charge(store)

    process = child(work)
    work()
    join(process)
    assert one.get("t").tokens_used == same.get("t").tokens_used == 4
    assert two.get("t").tokens_used == 2
""")


# -- moments ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fork_waits_for_another_threads_transaction(run: Run) -> None:
    run("""
with store_with_goal() as store:
    half_way = threading.Event()

    def work(repository):
        repository.charge("t", tokens=1)
        half_way.set()
        time.sleep(0.2)
        repository.charge("t", tokens=1)

    writer = in_thread(store.transact, work)
    assert half_way.wait(20)
    join(child(lambda: charge(store)))
    end(writer)
    assert store.get("t").tokens_used == 3
""")


@pytest.mark.slow
def test_a_fork_beside_a_transaction_of_another_thread_that_does_not_end_refuses_the_child(
    run: Run,
    database: Path,
) -> None:
    run("""
with store_with_goal(busy_timeout_seconds=0.3) as store:
    half_way, go_on = threading.Event(), threading.Event()

    def work(repository):
        repository.charge("t", tokens=1)
        half_way.set()
        go_on.wait(30)
        repository.charge("t", tokens=1)

    writer = in_thread(store.transact, work)
    assert half_way.wait(20)

    def refusals():
        refuse_all(store)
        store.close()

    join(child(refusals))
    go_on.set()
    end(writer)
    charge(store)
    assert store.get("t").tokens_used == 3
    join(child(lambda: charge(store)))
""")
    assert tokens(database) == 4


@pytest.mark.slow
def test_a_fork_from_inside_a_transaction_refuses_the_child_alone(run: Run, database: Path) -> None:
    run("""
with store_with_goal() as store:

    def refusals():
        for call in (
            lambda: store.get("t"),
            lambda: store.create("child", "Ship"),
            lambda: store.charge("t", tokens=1),
            lambda: list(store.goals()),
            lambda: list(store.events()),
            lambda: store.count(),
            lambda: store.verify(),
            lambda: store.subscribe(print),
            lambda: store.consume("audit", print),
            lambda: store.transact(lambda repository: None),
            lambda: GoalStore.open(path),  # SQLite's bookkeeping is the parent's here
            lambda: GoalStore.open(path, migrate=False),
        ):
            refused(call)
        store.close()

    def work(repository):
        repository.charge("t", tokens=1)
        join(child(refusals))
        repository.charge("t", tokens=1)

    store.transact(work)
    charge(store)
    assert store.get("t").tokens_used == 3
    join(child(lambda: charge(store)))  # a later one is not refused
""")
    assert tokens(database) == 4


@pytest.mark.slow
@pytest.mark.parametrize("way", ["transaction", "transact"])
def test_fork_inside_a_transaction_that_the_child_leaves_is_committed_by_the_parent_alone(
    run: Run, database: Path, way: str
) -> None:
    run(
        """
with store_with_goal() as store:
    parent = os.getpid()

    def work(repository):
        repository.charge("t", tokens=1)
        return os.fork()

    def begin():
        if WAY == "transact":
            return store.transact(work)
        with store.transaction() as tx:
            return work(tx)

    try:
        pid = begin()
    except ForkedStoreError:
        os._exit(0 if os.getpid() != parent else 1)
    if os.getpid() != parent:
        os._exit(1)  # it has committed
    assert os.waitpid(pid, 0)[1] == 0
    assert store.get("t").tokens_used == 1
    charge(store)
""".replace("WAY", repr(way))
    )
    assert tokens(database) == 2


@pytest.mark.slow
def test_a_refused_child_may_start_programs_that_use_the_file(run: Run, database: Path) -> None:
    run("""
import subprocess
with store_with_goal() as store:

    def start():
        refused(lambda: GoalStore.open(path))
        subprocess.run([sys.executable, "-m", "goal_state", "list", "--db", path], check=True,
                       stdout=subprocess.DEVNULL, timeout=30)

    store.transact(lambda repository: join(child(start)))
    charge(store)
""")
    assert tokens(database) == 1


@pytest.mark.slow
def test_a_fork_from_a_listener_works(run: Run, database: Path) -> None:
    run("""
with store_with_goal() as store:
    parent, forked = os.getpid(), []

    def listen(event):
        assert os.getpid() == parent, "listeners stay with the parent"
        if len(forked) < 3:
            forked.append(child(lambda: charge(store)))

    store.subscribe(listen)
    charge(store)
    charge(store)
    charge(store)
    join(*forked)
    assert len(forked) == 3
    assert store.get("t").tokens_used == 6
""")
    assert tokens(database) == 6


@pytest.mark.slow
def test_a_fork_while_another_thread_opens_and_closes_stores_works(run: Run) -> None:
    run("""
with store_with_goal(durability="normal") as store:
    stopping, failed, opened = [], [], [0]

    def open_and_close():
        try:
            while not stopping:
                with GoalStore.open(path, durability="normal") as other:
                    charge(other)
                opened[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = in_thread(open_and_close)
    for _ in range(20):
        join(child(lambda: charge(store)))
        assert not failed, failed
    stopping.append(True)
    end(thread)
    assert not failed, failed
    assert opened[0]
    assert store.get("t").tokens_used == 20 + opened[0]
""")


@pytest.mark.slow
def test_a_fork_while_a_backup_is_made_refuses_the_child_alone(run: Run, database: Path) -> None:
    run("""
with store_with_goal(busy_timeout_seconds=0.3) as store:
    half_way, go_on = threading.Event(), threading.Event()

    def progress(left, total):
        half_way.set()
        go_on.wait(30)

    failed = []

    def back_up():
        try:
            store.backup(path + "-copy", progress=progress)
        except BaseException as error:
            failed.append(error)

    thread = in_thread(back_up)
    assert half_way.wait(20)

    join(child(lambda: refuse_all(store)))
    charge(store)
    go_on.set()
    end(thread)
    assert not failed, failed
    charge(store)
    with GoalStore.open(path + "-copy", migrate=False) as copy:
        assert copy.get("t").tokens_used == 0
    join(child(lambda: charge(store)))
""")
    assert tokens(database) == 3


@pytest.mark.slow
def test_a_fork_inside_an_export_refuses_the_child_alone(run: Run, database: Path) -> None:
    run("""
with store_with_goal(busy_timeout_seconds=0.3) as store:
    whole = list(store.export_lines())
    lines = store.export_lines()
    first = next(lines)

    join(child(lambda: refuse_all(store)))
    charge(store)
    assert [first, *lines] == whole
    join(child(lambda: charge(store)))
""")
    assert tokens(database) == 2


@pytest.mark.slow
def test_a_fork_inside_an_iteration_of_goals_or_events_spoils_nothing(run: Run) -> None:
    run("""
with GoalStore.open(path, durability="normal") as store:
    for number in range(1_200):  # more than a page
        store.create(f"t{number:04}", "Ship")
    goals, events = store.goals(), store.events()
    seen = [next(goals).thread_id]
    next(events)

    def work():
        try:
            charge(store, "t0000")
        except ForkedStoreError:  # between two pages it could let go; it says so if it did not
            return

    join(child(work))
    seen += [goal.thread_id for goal in goals]
    assert len(seen) == len(set(seen)) == 1_200
    assert len(list(events)) >= 1_199
""")


@pytest.mark.slow
def test_a_fork_in_a_signal_handler_at_any_moment_harms_nobody(run: Run, database: Path) -> None:
    said = run("""
store = store_with_goal(durability="normal")
forked, made = [], 0

def work():
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    try:
        store.charge("t", tokens=1)
    except ForkedStoreError:
        os._exit(7)

def handle(*_):
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    forked.append(process)

signal.signal(signal.SIGALRM, handle)
while len(forked) < 40:
    before = len(forked)
    signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.00007 * before)
    while len(forked) == before:
        charge(store)
        made += 1
        assert store.get("t") is not None
signal.setitimer(signal.ITIMER_REAL, 0)
for process in forked:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, 7), status
    made += status == 0
assert store.get("t").tokens_used == made, (store.get("t").tokens_used, made)
store.close()
print(made)
""")
    assert tokens(database) == int(said)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["forks._gate", "store._backend._readers._gate"])
def test_a_fork_in_a_signal_handler_leaves_the_lock_that_its_thread_was_holding(
    run: Run, gate: str
) -> None:
    run(f"""
from goal_state.storage import forks
store = store_with_goal(durability="normal")
with {gate}:
    process = os.fork()
    if process == 0:
        os._exit(0)
assert os.waitpid(process, 0)[1] == 0
charge(store)
with GoalStore.open(path, durability="normal") as second:
    charge(second)
assert store.get("t").tokens_used == 2
store.close()
""")


# -- what stays with the parent -----------------------------------------------------------------------


@pytest.mark.slow
def test_listeners_and_consumers_stay_with_the_parent(run: Run) -> None:
    run("""
taken, heard = [], []
with GoalStore.open(path) as store:
    store.subscribe(lambda event: heard.append(event.position))
    consumer = store.consume("audit", lambda events: taken.extend(e.position for e in events))
    store.create("t", "Ship")
    assert consumer.drain(20)

    def work():
        heard.clear()
        taken.clear()
        charge(store)
        assert heard == taken == []
        own = []
        store.subscribe(own.append)
        charge(store)
        assert len(own) == 1, "a listener of the child's own"

    join(child(work))
    charge(store)
    assert consumer.drain(20)
assert heard == [1, 4], heard
assert taken == [1, 2, 3, 4], taken
""")


@pytest.mark.slow
def test_the_child_holds_none_of_the_parents_files(run: Run) -> None:
    """A lock on a file of the turnstile, if it lived on in the child, would keep everybody waiting."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell which files are open")
    run("""
def held():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return [name for name in found if name.startswith(path)]

with GoalStore.open(path) as store, GoalStore.open(path) as other:
    store.create("t", "Ship")
    # Two that write at once meet at the turnstile, and have its files open from then on.
    threads = [in_thread(lambda s=s: [charge(s) for _ in range(50)]) for s in (store, other)]
    for thread in threads:
        thread.join(20)
    assert held()

    def work():
        assert held() == []
        charge(store)
        assert held()

    join(child(work))
""")


def test_whose_log_it_is_stays_noted_through_a_fork(database: Path) -> None:
    with GoalStore.open(database) as store:
        store.create("t", "Ship")
        (noted,) = database.parent.glob("*-id")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            os._exit(0)
        os.waitpid(process, 0)
        GoalStore.open(database).close()  # the last one that has it open: no log, no note
        assert not noted.exists()
        store.charge("t", tokens=1)
        assert noted.exists()


@pytest.mark.slow
def test_a_fork_after_an_interrupted_open_or_first_call_inherits_nothing_of_it(
    run: Run,
) -> None:
    """A connection that was lost on its way stays open until it is collected."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell which files are open")
    run("""
import gc
import goal_state

class Strike(BaseException):
    pass

def struck_at(point, work):
    def at_call(frame, event, _):
        nonlocal point
        if event == "call" and frame.f_code.co_filename.startswith(goal_state.__path__[0]):
            point -= 1
            if point == 0:
                sys.setprofile(None)
                raise Strike
    sys.setprofile(at_call)
    try:
        work()
    except Strike:
        return True
    finally:
        sys.setprofile(None)
    return False

def check():
    for name in os.listdir("/proc/self/fd"):
        try:
            file = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        assert file not in (path, path + "-wal"), f"struck at {point} in {work}"

def open_and_close():
    GoalStore.open(path).close()

def call():
    store.get("t")
    charge(store)

gc.disable()
with store_with_goal() as store:
    for work in (open_and_close, call):  # the fork has closed the connections of the calls
        point = 1
        while struck_at(point, work):
            join(child(check))
            point += 7
        assert point > 40
""")


@pytest.mark.slow
def test_a_refused_child_that_outlives_a_killed_parent_locks_nobody_out(
    run: Run, database: Path
) -> None:
    said = run("""
read, write = os.pipe()
with GoalStore.open(path, busy_timeout_seconds=5) as outer:
    outer.create("t", "Ship")

def outlive():
    os.write(write, b"c")
    os.closerange(0, 3)  # what the test reads to its end
    time.sleep(20)

def parent():
    # Another process writes as well, so that everybody queues up at the turnstile.
    store = GoalStore.open(path, busy_timeout_seconds=5)
    os.write(write, b"o")

    def work(repository):
        repository.charge("t", tokens=1_000)
        child(outlive)
        time.sleep(0.2)  # the other one queues up
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(100):
        charge(store)
    store.transact(work)

busy = os.fork()
if busy == 0:
    with GoalStore.open(path, busy_timeout_seconds=5) as store:
        for _ in range(200):
            charge(store)
    os._exit(0)
process = os.fork()
if process == 0:
    parent()
assert os.waitpid(process, 0)[1] == signal.SIGKILL
assert os.read(read, 1) == b"o"
assert os.read(read, 1) == b"c"
join(busy)
with GoalStore.open(path, busy_timeout_seconds=5) as store:
    for _ in range(20):
        charge(store)
    print(store.get("t").tokens_used, flush=True)
os._exit(0)
""")
    assert int(said) == tokens(database) == 320


# -- other stores and other ways to begin a process ------------------------------------------------------


@pytest.mark.slow
def test_a_store_in_memory_is_refused_in_the_child_alone(run: Run) -> None:
    run("""
with GoalStore.open(":memory:") as store:
    store.create("t", "Ship")

    def refusals():
        refused(lambda: store.get("t"))
        refused(lambda: store.charge("t", tokens=1))
        store.close()
        with GoalStore.open(":memory:") as own:  # one of its own is fine
            own.create("t", "Ship")
            charge(own)

    join(child(refusals))
    charge(store)
    assert store.get("t").tokens_used == 1
""")


@pytest.mark.slow
def test_a_hosts_engine_with_idle_connections_works_on(run: Run, database: Path) -> None:
    run("""
from sqlalchemy import create_engine, text
engine = create_engine(f"sqlite:///{path}")
with GoalStore.open(engine) as store:
    store.create("t", "Ship")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (a)"))

    def work():
        charge(store)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO theirs VALUES (1)"))

    process = child(work)
    charge(store)
    join(process)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM theirs")).scalar() == 1
    assert store.get("t").tokens_used == 2
engine.dispose()
""")
    assert tokens(database) == 2


@pytest.mark.slow
def test_a_hosts_engine_with_a_connection_in_use_refuses_the_child_alone(
    run: Run, database: Path
) -> None:
    run("""
from sqlalchemy import create_engine, text
engine = create_engine(f"sqlite:///{path}")
with GoalStore.open(engine) as store:
    store.create("t", "Ship")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

        join(child(lambda: refuse_all(store)))
        assert connection.execute(text("SELECT 1")).scalar() == 1
    charge(store)
    join(child(lambda: charge(store)))
engine.dispose()
""")
    assert tokens(database) == 2


@pytest.mark.slow
def test_programs_that_are_started_beside_a_writing_thread_harm_nothing(run: Run) -> None:
    run("""
import subprocess
with store_with_goal(durability="normal") as store:
    stopping, made, failed = [], [0], []

    def write():
        try:
            while not stopping:
                charge(store)
                made[0] += 1
        except BaseException as error:
            failed.append(error)

    thread = in_thread(write)
    for before_exec in (None, lambda: None):
        subprocess.run([sys.executable, "-m", "goal_state", "verify", "--db", path], check=True,
                       stdout=subprocess.DEVNULL, preexec_fn=before_exec, timeout=30)
    stopping.append(True)
    end(thread)
    assert not failed, failed
    assert store.get("t").tokens_used == made[0]
""")


@pytest.mark.slow
def test_the_child_mints_ids_of_its_own() -> None:
    """Not its parent's, and also if another thread of the parent was minting one just then."""
    told = python(
        """
import os, signal
from goal_state.storage import identifiers

identifiers.new_id()
identifiers._lock.acquire()
process = os.fork()
if process == 0:
    signal.alarm(20)  # rather than to wait for ever
    print(identifiers.new_id(), flush=True)
    os._exit(0)
identifiers._lock.release()
_, status = os.waitpid(process, 0)
assert status == 0, status
print(identifiers.new_id())
""",
    )
    childs, parents = told.split()
    # Behind the time and its count: what two processes must not have in common.
    assert childs[19:] != parents[19:]
