"""What a run costs before it runs: hours, GPU-hours, storage and money, from measurements.

Read in this order: `shapes` (a model's size), `points` (what was measured), `fit` (a law through the points of one
stage on one machine), `stages` (the work of every stage of a run), `plan` (law times work), `tables` and `chart` (for
people), `pages` (their figures in docs/).
"""
