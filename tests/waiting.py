"""How long a test waits for what must come: it is ended only where something hangs."""

SECONDS = 900.0  # many times what a loaded machine of two cores needs
