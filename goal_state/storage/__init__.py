"""Every SQL statement, and what a database must offer to run it."""
