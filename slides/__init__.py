"""The lecture as slides: data in two languages (`format`, `deck`), and what makes a live deck and a page of it."""
