"""No command here: `daybreak tokenizer` is a group."""
