"""The forms of the weights that text is generated from."""

FLOAT32, BF16, INT8 = FORMS = ("float32", "bf16", "int8")
