"""`step-jepa inspect`: one example on its way into the model, stage by stage, as colours, JSON or a picture.

In the order of use: example.py plans an example's row as training does, of a long one sample.py chooses tokens; mask.py
says who sees whom in it, and picture.py draws that; stages.py describes and shows every stage of it; commands.py is
what users call.
"""
