"""EVAD: efficient video action detection with token dropout and context refinement (ICCV 2023)."""

__version__ = "0.1.0"
