"""Training: continued pretraining, instruction tuning and preference training, in one plain PyTorch trainer."""
