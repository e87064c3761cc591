"""A wheel of this checkout, installed as operators do: what is in it, what works, and what is left when it is gone."""
