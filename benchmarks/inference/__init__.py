"""Inference beside transformers, CTranslate2 and llama.cpp: `make bench`.

Read in this order: shapes (what is measured), configurations (who takes part, with which weights), prepare
(the same weights for everybody), engines (how each of them is asked), worker and process (one process for
each), measure (the turns), figures (medians, shares of the roof), table, picture and page (what is written
into docs/performance.md).
"""
