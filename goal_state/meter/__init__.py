"""Turns and active time: from what a live agent reports to charges on its thread's goal."""

from goal_state.meter.goal_meter import GoalMeter
from goal_state.meter.state import ExhaustedBudget, Reading

__all__ = ["ExhaustedBudget", "GoalMeter", "Reading"]
