"""One run from start to record, and studies of many runs."""
