"""A judge's benchmark run: judgments, metrics, calibration, the gate's decision, the report."""
