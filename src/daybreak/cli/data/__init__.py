"""No command here: `daybreak data` is a group."""
