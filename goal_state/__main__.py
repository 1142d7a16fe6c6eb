"""`python -m goal_state` is the program `goal-state`."""

from goal_state.cli import main

main()
