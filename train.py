"""Trains CLIP and unCLIP: `python train.py --help` lists what, `train_recipes/presets.py` with which numbers."""

from train_recipes.main import main

if __name__ == "__main__":
    main()
