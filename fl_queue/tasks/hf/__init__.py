"""
Tasks over transformers, peft and datasets; see docs/guides/hugging-face.md.

``packages`` is the only module that imports these, when they are first used. Needs the extra ``hf``.
"""
