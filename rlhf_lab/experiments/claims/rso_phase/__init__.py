"""The phase diagram of pairs from π_r: size and kind of a restricted policy's misfit, and β."""
