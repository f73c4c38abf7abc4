"""Published accuracies and recalls, in per cent, that `clip-jax verify` compares with."""

# Zero-shot top-1 on ImageNet's validation set, with OpenAI's class names and 80 templates
# (open_clip docs/openclip_results.csv; SigLIP 2: big_vision README_siglip2).
IMAGENET = {
    "RN50": 59.82, "RN101": 62.28, "RN50x4": 66.27, "RN50x16": 70.72, "RN50x64": 73.91,
    "ViT-B/32": 63.32, "ViT-B/16": 68.34, "ViT-L/14": 75.54, "ViT-L/14@336px": 76.56,
    "ViT-B-32/laion2b": 66.56, "ViT-B-16/laion2b": 70.23, "ViT-L-14/laion2b": 75.25,
    "ViT-H-14/laion2b": 77.96, "ViT-g-14/laion2b": 78.47, "ViT-bigG-14/laion2b": 80.09,
    "ViT-B-32-256/datacomp": 72.81, "ViT-B-16/datacomp": 73.49, "ViT-L-14/datacomp": 79.21,
    "SigLIP-B/16": 76.04, "SigLIP-L/16-256": 80.45, "SigLIP-SO400M/14-224": 82.03, "SigLIP-SO400M/14-384": 83.08,
    "SigLIP2-B/16-224": 78.2, "EVA02-B/16": 74.72, "EVA02-L/14": 79.77, "EVA02-L/14-336": 80.39,
}  # fmt: skip

# Recall@1, (text to image, image to text) (open_clip docs/openclip_retrieval_results.csv).
RETRIEVAL = {
    "flickr30k": {"ViT-B/32": (58.8, 78.9), "ViT-L/14": (65.0, 85.2), "RN50": (57.4, 80.0)},
    "coco": {"ViT-B/32": (30.4, 50.1), "ViT-L/14": (36.5, 56.3), "RN50": (28.5, 48.8)},
}
