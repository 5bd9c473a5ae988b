"""The configuration of a run: its sections, and TOML."""
