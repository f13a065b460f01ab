"""Tasks: definitions in lm-eval's own YAML, the adapter that runs them, the statistics of their scores."""
