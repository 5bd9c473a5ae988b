"""The sessions of noxfile.py that have a room of their own."""
