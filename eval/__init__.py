"""MEASUREMENT: artifacts to numbers. It knows no maker; the makers may import it."""
