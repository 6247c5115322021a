"""Preference and SFT data sets: file formats, readers, conversions and the Hugging Face Hub."""
