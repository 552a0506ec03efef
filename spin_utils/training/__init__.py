"""Training: the SPIN loss (eq. 4.7), one optimizer step, the loop around it, and the theory of section 5.

Doors: `loss.spin_loss`, `loop.train` (SFT, SPIN and DPO), `optimizer`, `theory`.
"""
