"""The arithmetic between silos: outer strategies, codecs, aggregation, privacy, masks, partitioners. Values in, values out."""
