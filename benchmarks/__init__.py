"""What the library costs, against `sqlite3` by hand and against what a user would take instead."""
