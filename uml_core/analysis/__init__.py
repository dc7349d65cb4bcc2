"""Analyses that explain a gain: margins, gradients, multimodal neurons, exchange rate, alignment."""
