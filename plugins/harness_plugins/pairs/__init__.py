"""Methods whose loss is a function of a pair's log-probabilities: a file each, over `base`."""
