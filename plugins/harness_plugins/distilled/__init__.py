"""Methods whose loss compares whole next-token distributions of two models: a file each."""
