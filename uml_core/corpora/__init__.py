"""Corpora: readers that list raw rows, splits and few-shot subsets, controls, and the corpora of the demo."""
