"""Weight transfer: transformer blocks that start from a text model's (docs/method.md, Analyses)."""
