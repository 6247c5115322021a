"""RSO's β and γ (its Figure 3) and its two ranking schemes (its Table 2)."""
