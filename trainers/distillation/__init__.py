"""Distillation by the gradient of a divergence, which is compared with distillation by PPO."""
