"""The Ray wiring of each step: embed, train, tune, evaluate, predict, report, demo. Holds no maths."""

import gc
import os

# A process of ours begins by importing 300,000 objects that stay: at Python's own threshold of 700 new ones, a fifth of
# those seconds goes into looking for garbage among them.
gc.set_threshold(50_000)

# Nothing but `ray_session` starts a Ray. A Ray Data stream that was given up may outlive the cluster and ask for Ray
# again: Ray would start a second one unasked. It reads the switch once, when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
