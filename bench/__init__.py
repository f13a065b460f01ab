"""Speed and memory of the parts that decide a run's cost, each beside what it is compared with, in one run."""
