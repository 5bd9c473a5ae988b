"""The rooms of the FedML binding."""
