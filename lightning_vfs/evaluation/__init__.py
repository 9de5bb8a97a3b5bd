"""Evaluation of generated images: a plan in, a record out."""
