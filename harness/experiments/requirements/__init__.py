"""What a run takes: stages, memory, disk and time, from the configuration alone."""
