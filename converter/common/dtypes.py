"""Owns the dtypes of safetensors files: their names and widths, and which of them an export casts.

Uses only the standard library.
"""

SAFETENSORS = {"float64": ("F64", 8), "float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2), "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1)}  # fmt: skip
"""dtype -> its name in a safetensors header, and bytes an element."""


FLOATS = frozenset({"float64", "float32", "bfloat16", "float16"})


def target_dtype(source: str, dtype: str) -> str:
    """The dtype a source is exported in: integers and booleans stay as they are."""
    return dtype if source in FLOATS else source
