"""The colours and the label that all charts of a report share."""

# Okabe and Ito's colours, told apart by colour-blind readers too; black is kept for the dense network, grey for the
# baselines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY, FRONT, DENSE, LIMIT = "#8a8f98", "#1b1f24", "#000000", "#b42318"
