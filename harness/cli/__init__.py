"""The command line: four groups of verbs (Run, Read, Extend, Trust)."""

from .app import main as main
