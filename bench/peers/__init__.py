"""Training beside the libraries that a user would take instead: the same model on the same encoded rows.

``python -m bench.peers --help``; what is compared, and the traps, are in ``README.md`` beside this file.
"""
