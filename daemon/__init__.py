"""Decides which checkpoint is converted, when and where. Imports nothing heavy."""
