"""AI annotators: they compare two completions under a principle of a constitution, in both orders
of presentation.
"""
