"""`step-jepa pairing`: was the next step learned?"""
