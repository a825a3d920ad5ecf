"""What raw rows hold: every column's kind and numbers, what to be warned of, and a config to accept or edit."""

from recsys_embed.inspection.advice import Advice, advice
from recsys_embed.inspection.inspection import Inspection, inspect_rows
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.schema import config_tree

__all__ = ["Advice", "Inspection", "Kind", "advice", "config_tree", "inspect_rows"]
