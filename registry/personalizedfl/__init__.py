"""The rooms of the PersonalizedFL binding."""
