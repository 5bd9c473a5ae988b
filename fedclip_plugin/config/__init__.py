"""What a run is told: the sections of its configuration, and TOML."""
