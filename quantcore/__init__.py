"""Quantize, convert and measure language models: numbers and files, no web."""
