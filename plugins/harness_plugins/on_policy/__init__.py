"""Methods that learn from their own scored samples: a file each, over `base`."""
