"""The detector as plain `torch.nn` modules: no module here imports lightning or hydra."""
