"""`record_total`, `set_baseline` and `usage`."""

from __future__ import annotations

from goal_state import (
    ThreadUsage,
    TokenUsage,
)
from goal_state.testing.contract.subjects import (
    ACCOUNTED,
    CREATED,
    Subject,
    kinds,
)

__all__ = ["Totals"]


class Totals:
    """`record_total`, `set_baseline` and `usage`."""

    def test_record_total_charges_what_is_new(self, subject: Subject) -> None:
        subject.create("t", "Ship")
        assert subject.usage("t") is None
        assert not subject.record_total("t", TokenUsage(1000, 0, 0, 100), turn_id="turn-1").applied
        assert subject.usage("t") == ThreadUsage(
            TokenUsage(1000, 0, 0, 100), TokenUsage(), None, "turn-1"
        )

        total = TokenUsage(1600, 400, 30, 150, 20)
        charge = subject.record_total("t", total, seconds=2, turn_id="turn-2")
        assert charge.applied
        assert charge.goal is not None
        assert (charge.goal.tokens_used, charge.goal.time_used_ms) == (600 - 400 + 50, 2000)
        assert subject.usage("t") == ThreadUsage(
            total, TokenUsage(600, 400, 30, 50, 20), None, "turn-2"
        )

        tables = subject.tables()
        assert not subject.record_total("t", total, turn_id="turn-2").applied
        assert subject.tables() == tables
        assert [(e.kind, e.tokens_delta, e.turn_id) for e in subject.events()[1:]] == [
            (ACCOUNTED, 250, "turn-2")
        ]

    def test_set_baseline_charges_nothing(self, subject: Subject) -> None:
        goal = subject.create("t", "Ship")
        total, last = TokenUsage(700, 0, 0, 50), TokenUsage(70, 0, 0, 5)
        usage = ThreadUsage(total, last, 258_400, "turn-1")
        assert subject.set_baseline("t", usage) is None
        assert subject.usage("t") == usage
        assert subject.usage("other") is None
        assert subject.get("t") == goal
        assert kinds(subject.events()) == [CREATED]
        charge = subject.record_total("t", TokenUsage(710, 0, 0, 52))
        assert charge.goal is not None
        assert charge.goal.tokens_used == 12

    def test_a_total_of_a_turn_counts_for_it_unless_the_call_names_another(
        self, subject: Subject
    ) -> None:
        subject.create("t", "Ship")
        subject.set_baseline("t", ThreadUsage(TokenUsage(), turn_id="turn-1"))
        subject.record_total("t", ThreadUsage(TokenUsage(5), turn_id="turn-2"))
        subject.record_total("t", ThreadUsage(TokenUsage(12), turn_id="turn-2"), turn_id="turn-3")
        subject.reconcile("t", ThreadUsage(TokenUsage(21), turn_id="turn-4"))
        subject.reconcile("t", ThreadUsage(TokenUsage(32), turn_id="turn-4"), turn_id="turn-5")
        assert [(e.tokens_delta, e.turn_id) for e in subject.events()[1:]] == [
            (5, "turn-2"),
            (7, "turn-3"),
            (9, "turn-4"),
            (11, "turn-5"),
        ]
        assert subject.usage("t") == ThreadUsage(TokenUsage(32), turn_id="turn-5")

    def test_set_baseline_replaces_the_one_before(self, subject: Subject) -> None:
        subject.set_baseline("t", TokenUsage(700, 0, 0, 50), turn_id="turn-1")
        subject.set_baseline("t", TokenUsage(20, 0, 0, 1), turn_id="turn-2")
        usage = subject.usage("t")
        assert usage is not None
        assert (usage.total, usage.turn_id) == (TokenUsage(20, 0, 0, 1), "turn-2")
