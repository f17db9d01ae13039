"""What runs the clients: one file an engine, the same apps on each."""
