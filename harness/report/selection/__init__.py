"""Which runs a table, plot or report is made of."""
