"""Mathematics on tensors: pure functions, no state, no I/O."""
