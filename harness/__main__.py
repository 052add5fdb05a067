"""`python -m harness` is `harness`."""

from .cli.app import main

main()
