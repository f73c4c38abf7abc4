from clip_jax.uses.prompts import IMAGENET, IMAGENET_7, TEMPLATES


def test_counts_are_the_published_ones():
    counts = {name: len(templates) for name, templates in TEMPLATES.items()}
    published = {"imagenet": 80, "cifar10": 18, "cifar100": 18, "caltech101": 34, "kinetics700": 28, "ucf101": 48}
    published |= {"resisc45": 18, "dtd": 8, "cars": 8, "country211": 5, "fer2013": 6, "eurosat": 3, "gtsrb": 3}
    assert {name: counts[name] for name in published} == published
    assert len(counts) == 26 + 3  # and plain, imagenet, imagenet7


def test_every_template_is_whole_and_there_once():
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 and "<" not in template for template in templates)
    assert set(IMAGENET_7) < set(IMAGENET)


def test_some_of_them_to_the_letter():
    assert "a black and white photo of the {}." in TEMPLATES["cifar10"]
    assert "a photo of a big {}." in TEMPLATES["cifar100"]
    assert "a demonstration of the person practicing {}." in TEMPLATES["ucf101"]
    assert "satellite view of {}." in TEMPLATES["resisc45"]
    assert "aerial imagery of the {}." in TEMPLATES["resisc45"]
    assert 'a close up photo of a "{}" traffic sign.' in TEMPLATES["gtsrb"]
    assert "a photo of the {} texture." in TEMPLATES["dtd"]
    assert "a centered satellite photo of {}." in TEMPLATES["eurosat"]
    assert "the {} in a video game." in TEMPLATES["caltech101"]
