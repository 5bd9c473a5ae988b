"""Features of every image, encoded once, and their files."""
