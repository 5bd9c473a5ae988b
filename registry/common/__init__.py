"""What hosts share: options of a run and of a site, who takes part, lines of a log."""
