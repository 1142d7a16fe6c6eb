"""That what is compared by hand does the same work: its rows add up as the library's do."""

from pathlib import Path

from benchmarks.budgets_by_hand import BudgetLimit
from benchmarks.by_hand import BUDGET, OBJECTIVE
from goal_state import GoalStore


def test_costs_trees_and_holds_by_hand_leave_what_the_library_leaves(tmp_path: Path) -> None:
    def fill(store: GoalStore) -> None:
        store.create("root", OBJECTIVE, token_budget=BUDGET)
        store.create("middle", OBJECTIVE, token_budget=BUDGET, parent="root")
        store.create("leaf", OBJECTIVE, token_budget=BUDGET, parent="middle")
        store.create("flat", OBJECTIVE, token_budget=BUDGET, call_budget=10)

    with GoalStore.open(tmp_path / "ours.db") as store:
        fill(store)
        store.charge("leaf", tokens=100, seconds=0.25, turn_id="turn-1")
        store.charge("flat", tokens=100, seconds=0.25, cost="0.000125", turn_id="turn-1")
        hold = store.reserve("flat", tokens=120, turn_id="turn-1", dispatched=False)
        hold.dispatched()
        hold.settle(tokens=100)
        store.reserve("flat", tokens=120)
        ours = _figures(store)
    with GoalStore.open(tmp_path / "by-hand.db") as store:
        fill(store)
    limit = BudgetLimit(tmp_path / "by-hand.db")
    limit.charge_up("leaf", 100, 250, "turn-1")
    limit.charge_cost("flat", 100, 250, 125_000, "turn-1")
    settled = limit.reserve("flat", 120, "turn-1", is_dispatched=0)
    limit.dispatch(settled)
    limit.settle(settled, 100)
    limit.reserve("flat", 120, "turn-1")
    limit.close()

    with GoalStore.open(tmp_path / "by-hand.db") as store:
        assert store.verify() == []
        assert _figures(store) == ours


def _figures(store: GoalStore) -> list[object]:
    """What has to be the same: all but ids and times."""
    rows = [*store.goals(), *store.events()]
    return [
        {
            name: value
            for name, value in row.to_dict().items()
            if not name.endswith(("_id", "_ids", "_at", "_at_ms")) or name.startswith("t")
        }
        for row in rows
    ]
