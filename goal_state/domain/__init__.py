"""The rules of goals, pure: no I/O, no clock, no SQL."""
