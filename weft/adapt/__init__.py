"""Pretrained weights at work: where training starts, what of it trains, and what is saved apart."""
