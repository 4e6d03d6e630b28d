"""Text from another process: a worker that holds the engine, and what speaks to it."""
