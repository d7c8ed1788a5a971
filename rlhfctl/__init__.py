"""rlhfctl: one strict recipe file in; a model trained by RLHF, and an honest verdict on it, out."""

__version__ = "0.1.0"
