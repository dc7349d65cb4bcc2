"""Tests: unit (no Ray), ray (a small local cluster), and end to end."""
