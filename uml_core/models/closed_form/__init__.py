"""Heads in closed form: ridge, a linear discriminant, and both under a prior that auxiliary corpora write."""
