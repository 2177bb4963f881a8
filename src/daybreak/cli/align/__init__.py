"""No command here: `daybreak align` is a group."""
