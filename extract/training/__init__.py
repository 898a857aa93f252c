"""Fine-tuning of the backbone: frame cache, targets, losses, sampling, augmentation and the training loop."""
