"""Training and testing a defect detector: does it find real defects better with the generated pairs?"""
