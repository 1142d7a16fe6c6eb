"""Goals in one SQLite file, for any number of threads and processes."""
