"""Analyses of embeddings and trained models: what two corpora have in common, and what a shared model made of it."""
