"""The Ray wiring of each step: embed, train, tune, evaluate, predict, report, demo. Holds no maths."""

import os

# Nothing but `ray_session` starts a Ray. A Ray Data stream that was given up may outlive the cluster and ask for Ray
# again: Ray would start a second one unasked. It reads the switch once, when it is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
