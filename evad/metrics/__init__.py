"""What is measured: detection quality (`ava`, `tubes`) and cost (`efficiency`)."""
