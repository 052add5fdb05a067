"""Statistics of studies, without torch and seeded: intervals, comparisons, power, length control,
ratings.
"""
