"""A run as one module that needs no fedclip."""
