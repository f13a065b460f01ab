"""Composition: which stages, with which numbers."""
