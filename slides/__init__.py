"""The lecture slides: their content (`schema`, `deck`), and the programs that turn it into a live view and pages."""
