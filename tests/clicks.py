"""The config of the commands' tests: a small model on the rows of the fixture ``clicks``."""

CONFIG = """
[data]
path = {path!r}
label = "clicked"
categorical = ["user", "item"]
split = {{ column = "part" }}
[model]
name = "dlrm"
dim = 4
top = [8]
[embedding]
strategy = "hash"
budget = 0.5
[training]
batch_size = 256
epochs = {epochs}
threads = 1
[study]
strategies = ["full", "hash"]
budgets = [0.5]
seeds = [0]
"""
