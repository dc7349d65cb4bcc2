"""The Ray wiring of each step: embed, train, tune, evaluate, predict, report, demo. Holds no maths."""
