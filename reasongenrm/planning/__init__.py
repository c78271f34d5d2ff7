"""What a run costs before it runs: hours, GPU-hours, storage and money, from measurements.

Read in this order: `measurements` (what was measured), `workloads` (the work of every stage of a run), `estimate` (work
divided by measured throughput), `plan_text` (for people).
"""
