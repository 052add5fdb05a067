"""Methods that play against earlier policies, or go on from them in rounds: a file each."""
