"""The paper, reproduced: its runs, its figures, its claims, and what came of them."""
