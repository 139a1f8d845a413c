"""`step-jepa inspect`: one example on its way into the model, stage by stage, as colours, JSON or a picture.

preparation.py makes of an example what training makes of it, a specimen. A stage is one small file with `show`, for
the terminal, and `describe`, for JSON; stages.py has them in order.
"""
