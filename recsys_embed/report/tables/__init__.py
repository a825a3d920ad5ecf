"""The words and tables of the page, as plain text that the HTML and the Markdown templates lay out."""

from recsys_embed.report.tables.advice import Advice, advise, notices
from recsys_embed.report.tables.allocation import allocation_table, finds_of
from recsys_embed.report.tables.buckets import bucket_table
from recsys_embed.report.tables.budgets import absent_note, budget_table
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.failures import failure_table
from recsys_embed.report.tables.importance import importance_note, importance_table
from recsys_embed.report.tables.parts import part_cells, part_table
from recsys_embed.report.tables.protocol import protocol, versions
from recsys_embed.report.tables.search import search_facts, search_table
from recsys_embed.report.tables.speed import serving_note, serving_table, speed_table
from recsys_embed.report.tables.tuning import tuning_facts, tuning_table
from recsys_embed.report.tables.words import PERCENT, plural

__all__ = [
    "PERCENT",
    "Advice",
    "Table",
    "Text",
    "absent_note",
    "advise",
    "allocation_table",
    "bucket_table",
    "budget_table",
    "failure_table",
    "finds_of",
    "importance_note",
    "importance_table",
    "notices",
    "part_cells",
    "part_table",
    "plural",
    "protocol",
    "search_facts",
    "search_table",
    "serving_note",
    "serving_table",
    "speed_table",
    "tuning_facts",
    "tuning_table",
    "versions",
]
