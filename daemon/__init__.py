"""Decides which checkpoint is converted, when and where; imports nothing heavy."""
