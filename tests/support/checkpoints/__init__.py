"""Builders of tiny but real checkpoints: TorchTitan's Qwen3, DCP's own writer, four gloo ranks.

`python -m tests.support.checkpoints OUT` writes all of `cases.ALL` under OUT; `cases` says what they are and where, without torch.
`reference` reads them back by torch and TorchTitan alone, for tests to compare with.
"""
