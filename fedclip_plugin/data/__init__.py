"""Images, data sets, and how their rows become clients."""
