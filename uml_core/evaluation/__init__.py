"""Fair evaluation: metrics of a trained run, and the statistics that compare arms over paired seeds."""
