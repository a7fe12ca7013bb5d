"""Measurement of detection quality (`ava`, `tubes`) and cost (`cost`)."""
