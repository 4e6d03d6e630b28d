"""DeepSpeed's ZeRO: the engine, its settings, its states."""
