"""What a worker can be told to do, by job."""
