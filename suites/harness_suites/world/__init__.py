"""The embedded world: procedural texts in one small vocabulary, shared by every embedded suite.

`words` lists the vocabulary, `documents` writes news with summaries, `sums` writes chains of
  additions, `requests`
writes instructions with checkable constraints. Nothing here is downloaded; everything is a pure
  function of a seed.
"""
