"""An existing code base that matches distributions with an augmentation of its own, before and after one change.

before.py and after.py differ in one line, the import; augmentation.py stands for the file that the line named.
"""
