"""Studies: many runs from one file, carried out by a launcher, to be stopped, gone on with and
added to.
"""
