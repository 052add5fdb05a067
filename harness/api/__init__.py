"""What a plugin author reads: contracts, the lab, method base classes, hooks and the registry."""
