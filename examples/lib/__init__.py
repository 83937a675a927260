"""What the examples share: services, a cluster of real processes, local servers in place of internet services, checks, plots."""
