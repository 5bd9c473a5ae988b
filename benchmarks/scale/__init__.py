"""Many clients."""
