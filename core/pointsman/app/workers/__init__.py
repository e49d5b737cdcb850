"""Several picker processes behind one port: `supervisor` in the parent, `process` in each child, `frames` between."""
