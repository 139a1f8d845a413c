"""`step-jepa surprise`: how far is each step of an answer from the one that the model expected?"""
