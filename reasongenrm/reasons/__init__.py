"""Reasons: written by a teacher or the policy, scored by a model, selected for SFT and DPO."""
