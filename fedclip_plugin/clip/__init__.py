"""The frozen CLIP: prompts, weights, loading and encoding."""
