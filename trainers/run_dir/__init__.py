"""The run folder: what it holds, whom it belongs to, and its lock."""
