"""``python train.py experiment=...``; the same as ``learnreg train experiment=...``."""

from learnreg.apps.train import main

if __name__ == "__main__":
    main()
