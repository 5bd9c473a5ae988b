"""The operators, and what travels."""
