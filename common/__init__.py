"""The foundation: what makers, measurement and recipes share. It knows no stage's name."""
