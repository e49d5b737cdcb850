"""The reference of what operators write and read, made from the code: `python -m pointsman.app.reference`.

Fields, types and defaults come from the types that read manifests; meanings stand in `texts_*.py`, `names.py` and
`words.py`. A field or a word without a meaning is an error, so that none is forgotten.
"""
