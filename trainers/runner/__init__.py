"""The outer loop: stages, evaluation, checkpoints, exports."""
