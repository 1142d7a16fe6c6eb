"""Delivery of events: live to listeners, or by durable cursors to consumers."""
