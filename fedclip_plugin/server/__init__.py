"""The server: screening, aggregation and privacy."""
