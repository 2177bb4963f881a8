"""`daybreak align demo`: alignment from start to end on this machine's own text, labelled by a program."""
