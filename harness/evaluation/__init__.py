"""Evaluation: outside every plugin; one sampler, one KL estimator and one judge for all."""
