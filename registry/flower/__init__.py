"""The rooms of the Flower binding."""
