"""Methods that learn from scored lists of completions of a prompt: a file each, over `base`."""
