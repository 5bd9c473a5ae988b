"""What this package costs and reaches, measured; README.md lists the commands."""
