"""What figures are drawn with: colours and SVG, a figure at two widths, an axis of ranks."""
