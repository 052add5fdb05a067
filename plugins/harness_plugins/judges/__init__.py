"""Judges of evaluations: a language model that compares answers, and a reward model."""
