"""The authors' code beside ours."""
