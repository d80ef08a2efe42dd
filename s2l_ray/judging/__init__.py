"""Judging answers: what a text's final answer is, whether two are equal, what a program does, and metrics of these."""
