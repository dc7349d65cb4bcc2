"""Throughput, ours against a bare loop on the same machine, in one run, as a ratio. The figures: docs/measured.md."""
