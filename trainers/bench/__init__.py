"""How fast models write, and servers answer: measured with intervals, and against one another."""
