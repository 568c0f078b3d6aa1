"""Stages that train: distillation, continued pre-training, shearing and block-wise reconstruction."""
