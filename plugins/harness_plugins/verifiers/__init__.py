"""Verifiers: checks of answers, one file each."""
