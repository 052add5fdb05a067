"""The lab, the trainer, loops, rewards, caches and the shared stages."""
