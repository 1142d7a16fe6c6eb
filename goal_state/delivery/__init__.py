"""Events to whoever listens: live, or by a cursor that lasts."""
