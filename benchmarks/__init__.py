"""Throughput harnesses: ours against a bare loop on the same machine, in one run, as a ratio. RESULTS.md keeps them."""
