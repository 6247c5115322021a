"""Environments that supply prompts, responses and gold rewards: bandits, token trees and text."""
