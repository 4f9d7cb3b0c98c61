"""The networks of an iteration out of a pool of snapshots: `draw_snapshots`."""
