"""What a run will take, before it is started: batches, memory by phase, disk and time.

No weights exist: models are built and rehearsed on fake tensors, which have shapes and no memory.
"""
