"""Comparison tables."""
