"""Shared-weight models: projections into one width, and a head that every corpus goes through."""
