"""Rounds: who trains, what travels, what follows, and how it scores."""
