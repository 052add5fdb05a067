"""Tokens, loading, FLOPs, packing, log-probabilities, generation and LoRA."""
