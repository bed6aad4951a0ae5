"""One View, every way to show it: page, widget, figure; colours, scales, small statistics."""
