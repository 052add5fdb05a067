"""Selections of runs, tables, comparisons, plots and the report page. No torch."""
