"""Accuracy of methods and options."""
