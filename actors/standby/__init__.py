"""A copy of a run's newest state on another host, and who hands it out on the run's own."""
