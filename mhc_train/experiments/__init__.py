"""Several trainings: sweeps and comparisons, what they will cost, where each job stands, and how they end."""
