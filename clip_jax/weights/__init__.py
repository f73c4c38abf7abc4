"""Reading and writing of CLIP weights: our safetensors format (`native`), and one module per published format."""
