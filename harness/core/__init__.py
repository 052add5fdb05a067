"""Records, errors, typed options, the run specification, digests, files and artifacts. No torch."""
