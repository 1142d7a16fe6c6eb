"""The acts that a worker can be told to do, by job."""
