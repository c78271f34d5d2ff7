"""SFT and DPO: one training job in one process or under torchrun, resumable."""
