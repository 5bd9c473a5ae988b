"""Every kind of CLIP: what works with it, how fast, and with how many classes."""
