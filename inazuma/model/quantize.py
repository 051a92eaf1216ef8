GROUP = 32


def is_quantized(name, x):
    from torch import nn

    return isinstance(x, nn.Linear) and name != "lm_head" and ".indexer." not in name and not name.endswith("kv_b_proj")
