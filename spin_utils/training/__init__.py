"""Learning: the SPIN loss (eq. 4.7), one optimizer step, the loop around it, and the theory of section 5.

Doors: `losses.spin_loss`, `training.train_sft` and `training.train_pairs`, `optimizer`, `theory`.
"""
