"""The networks: blocks, backbones, necks, heads, and what turns their raw output into boxes."""
