"""S2L-Ray: pick the fine-tuning data of a large model by watching a small one learn (arXiv 2403.07384)."""
