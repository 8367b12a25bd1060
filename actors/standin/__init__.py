"""Who stands in, on the run's host, for a trainer of another one."""
