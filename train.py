"""Trains CLIP and unCLIP. `python train.py --help` lists the presets; `train_recipes/presets.py` defines them."""

from train_recipes.__main__ import main

if __name__ == "__main__":
    main()
